"""A fleet's certificates, access rules, bundles and keys."""
