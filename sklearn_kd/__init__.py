"""Knowledge distillation in the wide-network regime, as scikit-learn estimators."""

from sklearn_kd._show_versions import show_versions
from sklearn_kd.plan._plan import DistillationPlan
from sklearn_kd.search._student_cv import LinearizedKDStudentCV
from sklearn_kd.students._pipeline import StudentPipeline
from sklearn_kd.students._student import LinearizedKDStudent
from sklearn_kd.students._torch_student import TorchStudent
from sklearn_kd.teachers._ntk_teacher import NTKTeacher
from sklearn_kd.teachers._torch_teacher import TorchTeacher

__all__ = [
    "DistillationPlan",
    "LinearizedKDStudent",
    "LinearizedKDStudentCV",
    "NTKTeacher",
    "StudentPipeline",
    "TorchStudent",
    "TorchTeacher",
    "show_versions",
]

__version__ = "0.1.0.dev0"
