from .covariance import Covariance as Covariance
from .covariance import Dense as Dense
from .covariance import Diagonal as Diagonal
from .covariance import Isotropic as Isotropic
