//! A backend without a CPU, for tests of the contract and the VMM.
