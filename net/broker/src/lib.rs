//! RingMQ's broker.
