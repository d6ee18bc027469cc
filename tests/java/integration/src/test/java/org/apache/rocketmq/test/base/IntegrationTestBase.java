package org.apache.rocketmq.test.base;

import java.util.HashMap;
import java.util.Map;
import org.apache.rocketmq.broker.BrokerController;
import org.apache.rocketmq.common.BrokerConfig;
import org.apache.rocketmq.common.attribute.CQType;
import org.apache.rocketmq.common.attribute.TopicMessageType;
import org.apache.rocketmq.store.config.MessageStoreConfig;
import org.apache.rocketmq.test.util.MQAdminTestUtils;

/** Stands before the class of the same name in Apache's jar: what its tests use of it, for servers in processes of their own. */
public class IntegrationTestBase {
    private static final int TOPIC_SECONDS_MAX = 30;

    /** Makes a topic at every broker of the cluster, or at the one broker of this name. */
    public static boolean initTopic(String topic, String namesrv, String place, int queues, CQType queueType, TopicMessageType messageType) {
        Map<String, String> attributes = new HashMap<>();
        if (queueType != CQType.SimpleCQ) {
            attributes.put("+queue.type", queueType.toString());
        }
        if (messageType != TopicMessageType.NORMAL) {
            attributes.put("+message.type", messageType.toString());
        }
        return MQAdminTestUtils.createTopic(namesrv, place, topic, queues, attributes, TOPIC_SECONDS_MAX);
    }

    public static boolean initTopic(String topic, String namesrv, String place, CQType queueType) {
        return initTopic(topic, namesrv, place, BaseConf.QUEUE_NUMBERS, queueType, TopicMessageType.NORMAL);
    }

    public static boolean initTopic(String topic, String namesrv, String place, TopicMessageType messageType) {
        return initTopic(topic, namesrv, place, BaseConf.QUEUE_NUMBERS, CQType.SimpleCQ, messageType);
    }

    /** Starts the broker that has this configuration again, which the test has shut down. */
    public static BrokerController createAndStartBroker(MessageStoreConfig storeConfig, BrokerConfig brokerConfig) {
        return BaseConf.startAgain(brokerConfig.getBrokerName());
    }
}
