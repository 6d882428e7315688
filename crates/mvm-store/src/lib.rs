//! Versioned records with compare-and-set and watch
