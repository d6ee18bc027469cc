//! RingMQ's broker.

pub mod admin;
pub mod answer;
pub mod catalog;
pub mod config;
pub mod control;
pub mod home;
pub mod host;
pub mod connection;
pub mod keys;
pub mod mail;
