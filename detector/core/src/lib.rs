//! The mind of the detector.
