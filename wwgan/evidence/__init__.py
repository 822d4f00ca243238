"""What measures the claims: perturbations, statistics, studies, costs."""
