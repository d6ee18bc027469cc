//! RingMQ's broker.

pub mod mail;
