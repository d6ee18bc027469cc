//! RingMQ's broker.

pub mod mail;

pub mod config;
pub mod keys;
