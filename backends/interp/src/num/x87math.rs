//! The x87's constants and transcendental functions.
