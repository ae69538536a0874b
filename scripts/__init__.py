"""Programs of HSST and what they share; installed as the package `hsst`."""
