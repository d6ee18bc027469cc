//! RocketMQ's words: pure bytes to values and back. No I/O.
