//! RingMQ's NameServer: a route table and a door.
