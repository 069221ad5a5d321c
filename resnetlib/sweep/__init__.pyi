from .pool import LocalPool as LocalPool
from .pool import Needs as Needs
from .pool import visible_gpus as visible_gpus
from .scheduler import carry_out as carry_out
from .scheduler import exit_code as exit_code
from .task import Task as Task
