"""The gateway on engines that have servers of their own."""
