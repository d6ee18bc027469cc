//! RingMQ's benches: Criterion on the leaves (`benches/`), and the load tool `ringmq-bench`.

pub mod load;
pub mod report;
pub mod socket;
