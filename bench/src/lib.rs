//! RingMQ's benches: Criterion on the leaves (`benches/`), and the load tool `ringmq-bench`, which runs
//! fio-style jobs against a device, the engine, or a broker.

pub mod commitlog;
pub mod compare;
pub mod follow;
pub mod inside;
pub mod jobfile;
pub mod json;
pub mod limit;
pub mod options;
pub mod points;
pub mod quiet;
pub mod raw;
pub mod report;
pub mod requests;
pub mod rocketmq;
pub mod run;
pub mod socket;
pub mod stats;
pub mod store;
pub mod timer;
pub mod units;
