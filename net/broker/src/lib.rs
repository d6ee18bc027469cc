//! RingMQ's broker.

pub mod answer;
pub mod connection;
pub mod mail;

pub mod config;
pub mod keys;
