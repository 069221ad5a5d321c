from .find import reference_runs as reference_runs
from .imports import import_weights as import_weights
from .record import artifact_checksums as artifact_checksums
from .record import write_record as write_record
