//! Headers of requests to the NameServer.

use super::headers;

headers! {
    /// PUT_KV_CONFIG (100).
    PutKv<'a> {
        namespace: &'a str = "namespace",
        key: &'a str = "key",
        value: &'a str = "value",
    }

    /// GET_KV_CONFIG (101) and DELETE_KV_CONFIG (102).
    KvOf<'a> {
        namespace: &'a str = "namespace",
        key: &'a str = "key",
    }

    /// Answer to 101.
    KvAnswer<'a> {
        value: Option<&'a str> = "value",
    }

    /// GET_KVLIST_BY_NAMESPACE (219).
    NamespaceOf<'a> {
        namespace: &'a str = "namespace",
    }

    /// REGISTER_BROKER (103). `body_crc32` 0 or absent: unchecked.
    RegisterBroker<'a> {
        broker_name: &'a str = "brokerName",
        broker_addr: &'a str = "brokerAddr",
        cluster_name: &'a str = "clusterName",
        ha_server_addr: &'a str = "haServerAddr",
        broker_id: i64 = "brokerId",
        heartbeat_timeout_ms: Option<i64> = "heartbeatTimeoutMillis",
        enable_acting_master: Option<bool> = "enableActingMaster",
        compressed: bool = "compressed",
        body_crc32: Option<i32> = "bodyCrc32",
        zone_name: Option<&'a str> = "__ZONE_NAME",
    }

    /// Answer to 103: for a slave, where its master is.
    RegisterBrokerAnswer<'a> {
        ha_server_addr: Option<&'a str> = "haServerAddr",
        master_addr: Option<&'a str> = "masterAddr",
    }

    /// UNREGISTER_BROKER (104) and QUERY_DATA_VERSION (322).
    BrokerOf<'a> {
        broker_name: &'a str = "brokerName",
        broker_addr: &'a str = "brokerAddr",
        cluster_name: &'a str = "clusterName",
        broker_id: i64 = "brokerId",
    }

    /// Answer to 322.
    DataVersionAnswer {
        changed: bool = "changed",
    }

    /// GET_ROUTEINFO_BY_TOPIC (105).
    GetRoute<'a> {
        topic: &'a str = "topic",
        accept_standard_json_only: bool = "acceptStandardJsonOnly",
    }

    /// WIPE_WRITE_PERM_OF_BROKER (205) and ADD_WRITE_PERM_OF_BROKER (327).
    BrokerName<'a> {
        broker_name: &'a str = "brokerName",
    }

    /// Answer to 205.
    WipeAnswer {
        count: i32 = "wipeTopicCount",
    }

    /// Answer to 327.
    AddAnswer {
        count: i32 = "addTopicCount",
    }

    /// DELETE_TOPIC_IN_NAMESRV (216).
    DeleteTopicRoute<'a> {
        topic: &'a str = "topic",
        cluster_name: Option<&'a str> = "clusterName",
    }

    /// GET_TOPICS_BY_CLUSTER (224).
    ClusterOf<'a> {
        cluster: &'a str = "cluster",
    }

    /// GET_BROKER_MEMBER_GROUP (901).
    MemberGroupOf<'a> {
        cluster_name: &'a str = "clusterName",
        broker_name: &'a str = "brokerName",
    }

    /// BROKER_HEARTBEAT (904).
    BrokerHeartbeat<'a> {
        cluster_name: &'a str = "clusterName",
        broker_addr: &'a str = "brokerAddr",
        broker_name: &'a str = "brokerName",
        broker_id: Option<i64> = "brokerId",
    }
}
