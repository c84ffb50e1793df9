r"""The loss of a recipe as text for other toolkits, and the factor between it and Eq. 2.

Eq. 2 is :math:`\rho s\,\mathrm{soft} + (1-\rho)\,\mathrm{hard}`, s being 1, or T² with
``temperature_scaling="squared"``. A toolkit that multiplies its soft term by T² has it with the
weights ρ s / T² and 1 − ρ, or, where one number α must do, with these divided by their sum.

==================  ==================
here                in the texts
==================  ==================
soft_ratio, ρ       soft_ratio
temperature, T      T, temperature
==================  ==================
"""

from __future__ import annotations

from string import Template
from typing import Any

from sklearn_kd.distillation._arguments import check_word, count
from sklearn_kd.distillation._recipes import toolkit_weight

TARGETS = ("torch", "torchdistill", "huggingface", "hinton")
LEAST_SQUARE, LARGEST_SQUARE = 1e-300, 1e300  # of a temperature

# One logit a row is the log-odds of class 1: the softmax of (0, z) has the odds of z at any T.
TWO_COLUMNS = '''
def two_columns(logits):
    """Log-odds of class 1, (n,) or (n, 1), as logits of both classes, (n, 2)."""
    if logits.ndim == 2 and logits.shape[1] == 2:
        return logits
    logits = logits.reshape(-1)
    return torch.stack([torch.zeros_like(logits), logits], dim=1)

'''
BOTH_TO_COLUMNS = """\
    student_logits, teacher_logits = two_columns(student_logits), two_columns(teacher_logits)
"""

TORCH = Template("""\
import torch
from torch.nn import functional as F

${before}
def distillation_loss(student_logits, teacher_logits, labels):
${columns}    T, soft_ratio = ${temperature}, ${soft_ratio}
    soft_labels = F.softmax(teacher_logits.detach() / T, dim=1)
    soft = ${squared}F.cross_entropy(student_logits / T, soft_labels, reduction="none")
    hard = F.cross_entropy(student_logits, labels, ignore_index=-1, reduction="none")
    mixed = soft_ratio * soft + (1 - soft_ratio) * hard
    return torch.where(labels == -1, soft, mixed).mean()  # -1: a row without a label
""")

HINTON = Template("""\
import torch
from torch.nn import functional as F

${before}
def distillation_loss(student_logits, teacher_logits, labels):
${columns}    alpha, T = ${alpha}, ${temperature}
    log_p = F.log_softmax(student_logits / T, dim=1)
    q = F.softmax(teacher_logits.detach() / T, dim=1)
    kl = F.kl_div(log_p, q, reduction="batchmean")
    ce = F.cross_entropy(student_logits, labels)
    return alpha * T**2 * kl + (1 - alpha) * ce
""")

HUGGINGFACE = Template('''\
import torch
from torch.nn import functional as F
from transformers import Trainer


class DistillationTrainer(Trainer):
    """DistillationTrainer(..., teacher_model=teacher); one logit for each class and row."""

    def __init__(self, *args, teacher_model, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = teacher_model.to(self.args.device).eval()
        # The loss is a mean over the rows of its batch: accumulation has to divide it.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        alpha, T = ${alpha}, ${temperature}  # alpha weighs the labels
        outputs = model(**inputs)
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits
        log_p = F.log_softmax(outputs.logits / T, dim=1)
        q = F.softmax(teacher_logits / T, dim=1)
        kl = F.kl_div(log_p, q, reduction="batchmean")
        ce = F.cross_entropy(outputs.logits, inputs["labels"])
        loss = alpha * ce + (1 - alpha) * T**2 * kl
        return (loss, outputs) if return_outputs else loss
''')

TORCHDISTILL = Template("""\
criterion:
  key: 'WeightedSumLoss'
  kwargs:
    sub_terms:
      kd:
        criterion:
          key: 'KDLoss'
          kwargs:
            student_module_path: '.'
            student_module_io: 'output'
            teacher_module_path: '.'
            teacher_module_io: 'output'
            temperature: ${temperature}
            alpha: ${alpha}  # of the labels
            beta: ${beta}  # of the teacher, times temperature squared
            reduction: 'batchmean'
        weight: ${weight}
""")


def code_of(target: str, n_classes: int | None, **recipe: Any) -> str:
    """Return the text of a target for the parameters of a recipe; checked. See `as_code`."""
    scale = scale_of(target, **recipe)
    if n_classes is not None:
        n_classes = count(n_classes, "n_classes, the number of classes,", least=2)
    of_binary = {
        "before": TWO_COLUMNS if n_classes == 2 else "",
        "columns": BOTH_TO_COLUMNS if n_classes == 2 else "",
    }
    if target == "torch":
        squared = "T**2 * " if recipe["temperature_scaling"] == "squared" else ""
        text = TORCH.substitute(recipe, squared=squared, **of_binary)
    elif target == "hinton":
        text = HINTON.substitute(_numbers_of_one_weight(target, **recipe), **of_binary)
    elif target == "huggingface":
        text = HUGGINGFACE.substitute(_numbers_of_one_weight(target, **recipe))
    else:
        text = TORCHDISTILL.substitute(_numbers_of_two_weights(target, **recipe))
    return _comment(scale, recipe) + text


def scale_of(
    target: str, *, soft_ratio: float, temperature: float, temperature_scaling: str
) -> float:
    """Return the factor of the loss of a target; checked. See `loss_scale`."""
    check_word(target, "target", TARGETS)
    computes_square = target != "torch" or temperature_scaling == "squared"
    if computes_square and not LEAST_SQUARE <= temperature * temperature <= LARGEST_SQUARE:
        raise ValueError(
            f"temperature={temperature} cannot be written for target={target!r}, which squares it: "
            f"the square must be in [{LEAST_SQUARE:g}, {LARGEST_SQUARE:g}]; take one nearer to 1."
        )
    if target in ("torch", "torchdistill") or temperature_scaling == "squared":
        return 1.0
    # c = 1 / (ρ/T² + 1 - ρ), the sum by which both weights were divided.
    return temperature / (soft_ratio / temperature + (1 - soft_ratio) * temperature)


def _numbers_of_one_weight(
    target: str, soft_ratio: float, temperature: float, temperature_scaling: str
) -> dict[str, float]:
    """Return the numbers of α T² KL + (1 - α) CE, or of α CE + (1 - α) T² KL."""
    weight = soft_ratio
    if temperature_scaling == "none":
        weight = float(toolkit_weight(soft_ratio, temperature, temperature_scaling="squared"))
    alpha = weight if target == "hinton" else 1 - weight
    # Where α is 0 or 1, a term is gone.
    _require_both_terms(target, soft_ratio, alpha, 1 - alpha)
    return {"alpha": alpha, "temperature": temperature}


def _numbers_of_two_weights(
    target: str, soft_ratio: float, temperature: float, temperature_scaling: str
) -> dict[str, str]:
    """Return the numbers of α CE + β T² KL, as YAML."""
    square = temperature * temperature
    is_squared = temperature_scaling == "squared"
    alpha, beta = 1 - soft_ratio, soft_ratio if is_squared else soft_ratio / square
    _require_both_terms(target, soft_ratio, alpha, beta)
    # With α = 0 the toolkit returns the divergence itself, without β and T².
    weight = square if is_squared and alpha == 0 else 1.0
    values = {"alpha": alpha, "beta": beta, "temperature": temperature, "weight": weight}
    return {name: _yaml_number(value) for name, value in values.items()}


def _require_both_terms(target: str, soft_ratio: float, *weights: float) -> None:
    if 0 < soft_ratio < 1 and 0 in weights:
        raise ValueError(
            f"soft_ratio={soft_ratio} cannot be written for target={target!r} at this temperature: "
            "next to one term the other is below any float64; take target='torch'."
        )


def _yaml_number(value: float) -> str:
    # YAML 1.1 reads "1e-05" as a word: a number with an exponent needs a decimal point.
    mantissa, e, exponent = repr(value).partition("e")
    return mantissa + (".0" if e and "." not in mantissa else "") + e + exponent


def _comment(scale: float, recipe: dict[str, Any]) -> str:
    values = ", ".join(f"{name}={value!r}" for name, value in recipe.items())
    if scale == 1:
        return f"# Recipe({values}) x 1: lr stays as it is.\n"
    return (
        f"# Recipe({values}) x {scale:.6g}: for the same steps of SGD divide lr by "
        f"{scale:.6g}, and multiply weight_decay by it.\n"
    )
