//! RingMQ's broker.

mod admin;
mod answer;
pub mod boot;
mod call;
pub mod catalog;
pub mod config;
mod connection;
mod consume;
mod control;
pub mod core;
mod desk;
mod home;
mod host;
mod inquiry;
mod keys;
mod ledger;
mod locks;
pub mod log_tool;
pub mod mail;
mod members;
mod parked;
mod place;
pub mod produce;
mod promise;
mod registrar;
mod runtime;
pub mod topics;
