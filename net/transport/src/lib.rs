//! Framed TCP on tokio-uring, for everything that is not the hot path.
