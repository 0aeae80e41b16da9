from .benchmark import BenchTable as BenchTable
from .benchmark import bench as bench
from .experiment import Result as Result
from .experiment import TwinExperiment as TwinExperiment
from .tuning import TuneTable as TuneTable
from .tuning import tune as tune
from .twin import Twin as Twin
