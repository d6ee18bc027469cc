//! RingMQ's benches: Criterion on the leaves, and the load tool.
