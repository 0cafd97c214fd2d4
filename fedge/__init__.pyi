from fedge.shadowing import check_shadowing as check_shadowing
from fleet.api import Clients as Clients
from fleet.api import Comparison as Comparison
from fleet.api import Interrupted as Interrupted
from fleet.api import ModelPackage as ModelPackage
from fleet.api import Report as Report
from fleet.api import Result as Result
from fleet.api import Scenario as Scenario
from fleet.api import compare as compare
from fleet.api import export as export
from fleet.api import load_report as load_report
from fleet.api import partition as partition
from fleet.api import simulate as simulate

__version__: str
