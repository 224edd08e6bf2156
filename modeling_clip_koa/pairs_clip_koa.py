"""Both knees of a person help each other: the grades of the two go together, and one knee tells of the other."""

from dataclasses import dataclass

import torch

_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class PairPrior:
    """How the grades of a person's two knees go together, as counted on training people, and how far to trust it.

    Attributes:
        joint: (K, K), share of people whose two knees have grades a and b; symmetric, all above 0, adds up to 1.
        weight: 0 leaves each knee alone; 1 takes what the X-rays show for independent, given the two grades.
    """

    joint: torch.Tensor
    weight: float

    def __post_init__(self):
        joint = self.joint
        if joint.ndim != 2 or joint.shape[0] != joint.shape[1] or not bool((joint > 0).all()):
            raise ValueError(f"joint is of shape {tuple(joint.shape)}: it must be (K, K), each share above 0.")
        if abs(joint.sum().item() - 1) > _SUM_TOLERANCE or not torch.allclose(joint, joint.T, atol=1e-6):
            raise ValueError("joint must be symmetric and add up to 1.")
        if not 0 <= self.weight <= 2:
            raise ValueError(f"weight={self.weight}: it must lie between 0 and 2.")

    def combine(self, one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities of each knee's grades, given the X-rays of both.

        p(a, b) is proportional to p(a | x) p(b | y) (J(a, b) / (J(a) J(b)))^weight, and each knee's probabilities are
        its marginals. Which knee comes first makes no difference.

        Args:
            one, other: probabilities (..., K) of the two knees, each seen alone.

        Returns:
            The same, each seen with the other: (..., K) in double precision, adding up to 1.
        """
        joint = self.joint.double()
        share = joint.sum(0)
        lift = (joint / (share[:, None] * share)).pow(self.weight)
        one, other = one.double(), other.double()
        # By one formula for both, so that swapping the knees swaps the results to the bit.
        first, second = one * (other @ lift), other * (one @ lift)
        return first / first.sum(-1, keepdim=True), second / second.sum(-1, keepdim=True)
