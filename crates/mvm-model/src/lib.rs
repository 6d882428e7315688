//! Resources, validation, state machine and the pure decisions of mvm
