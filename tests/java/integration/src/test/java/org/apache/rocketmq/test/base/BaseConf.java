package org.apache.rocketmq.test.base;

import static org.awaitility.Awaitility.await;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.ForkJoinPool;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.broker.BrokerController;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.common.MQVersion;
import org.apache.rocketmq.common.attribute.CQType;
import org.apache.rocketmq.common.attribute.TopicMessageType;
import org.apache.rocketmq.namesrv.NamesrvController;
import org.apache.rocketmq.remoting.protocol.RemotingCommand;
import org.apache.rocketmq.remoting.protocol.subscription.SubscriptionGroupConfig;
import org.apache.rocketmq.test.client.rmq.RMQAsyncSendProducer;
import org.apache.rocketmq.test.client.rmq.RMQNormalConsumer;
import org.apache.rocketmq.test.client.rmq.RMQNormalProducer;
import org.apache.rocketmq.test.client.rmq.RMQTransactionalProducer;
import org.apache.rocketmq.test.clientinterface.MQConsumer;
import org.apache.rocketmq.test.clientinterface.MQProducer;
import org.apache.rocketmq.test.factory.ConsumerFactory;
import org.apache.rocketmq.test.listener.AbstractListener;
import org.apache.rocketmq.test.util.MQAdminTestUtils;
import org.apache.rocketmq.test.util.MQRandomUtils;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;
import org.apache.rocketmq.tools.admin.MQAdminExt;
import org.junit.Rule;
import org.junit.rules.Timeout;
import ringmq.NotYet;
import ringmq.Remote;
import ringmq.rig.Node;
import ringmq.rig.Rig;

/**
 * Stands before the class of the same name in Apache's jar: every test's superclass. A NameServer and three brokers are started
 * once per JVM, as processes, and end with it. Names and signatures are those that the tests were compiled against.
 */
public class BaseConf {
    public static final String NAMESRV_ADDR;

    protected static final String CLUSTER_NAME = "DefaultCluster";
    protected static final String BROKER1_NAME = "TestBrokerName_1";
    protected static final String BROKER2_NAME = "TestBrokerName_2";
    protected static final String BROKER3_NAME = "TestBrokerName_3";
    protected static final int BROKER_NUM = 3;
    protected static final int WAIT_TIME = 5;
    protected static final int CONSUME_TIME = 2 * 60 * 1000;
    protected static final int QUEUE_NUMBERS = 8;

    protected static NamesrvController namesrvController;
    protected static BrokerController brokerController1;
    protected static BrokerController brokerController2;
    protected static BrokerController brokerController3;
    protected static List<BrokerController> brokerControllerList;
    protected static Map<String, BrokerController> brokerControllerMap;
    protected static List<Object> mqClients = new ArrayList<>();
    protected static boolean debug = false;

    /** What Apache's own base class sets at its brokers, as far as it concerns what tests see. */
    private static final Map<String, String> SETTINGS = Map.of(
        "enablePropertyFilter", "true",
        "enableCalcFilterBitMap", "true",
        "enableConsumeQueueExt", "true",
        "recallMessageEnable", "true",
        "popConsumerKVServiceInit", "true",
        "loadBalancePollNameServerInterval", "500",
        "maxTransferCountOnMessageInMemory", "1024",
        "maxTransferCountOnMessageInDisk", "1024");

    private static final Map<String, Node> NODES;
    /** Patient, because three brokers at once may keep a machine busy. */
    private static final DefaultMQAdminExt ADMIN = new DefaultMQAdminExt(30_000);

    static {
        System.setProperty(RemotingCommand.REMOTING_VERSION_KEY, Integer.toString(MQVersion.CURRENT_VERSION));
        Node namesrv = Rig.namesrv(Rig.kind());
        NAMESRV_ADDR = namesrv.namesrv();
        NODES = Remote.start(SETTINGS, CLUSTER_NAME, List.of(BROKER1_NAME, BROKER2_NAME, BROKER3_NAME), NAMESRV_ADDR);
        ADMIN.setNamesrvAddr(NAMESRV_ADDR);
        ADMIN.setInstanceName("remote");
        try {
            ADMIN.start();
            MQAdminTestUtils.startAdmin(NAMESRV_ADDR);
            if (Rig.kind() == Rig.Kind.RINGMQ) {
                Properties settings = new Properties();
                settings.putAll(SETTINGS);
                for (Node node : NODES.values()) {
                    ADMIN.updateBrokerConfig(node.broker(), settings);
                }
            }
        } catch (Exception e) {
            throw new AssertionError("the brokers do not take their settings", e);
        }
        namesrvController = Remote.namesrv(namesrv, ADMIN);
        brokerController1 = remote(BROKER1_NAME);
        brokerController2 = remote(BROKER2_NAME);
        brokerController3 = remote(BROKER3_NAME);
        brokerControllerList = List.of(brokerController1, brokerController2, brokerController3);
        brokerControllerMap = Map.of(BROKER1_NAME, brokerController1, BROKER2_NAME, brokerController2, BROKER3_NAME, brokerController3);
    }

    /** Public, as JUnit wants it. */
    @Rule
    public final NotYet notYet = new NotYet();
    /** A test that hangs must not hang the others. Some wait twice for two minutes before they give up. */
    @Rule
    public final Timeout limit = Timeout.seconds(400);

    public BaseConf() {
        waitBrokerRegistered(NAMESRV_ADDR, CLUSTER_NAME, BROKER_NUM);
    }

    /** Waits until the NameServer tells of so many brokers. */
    public static void waitBrokerRegistered(String namesrv, String cluster, int count) {
        await().atMost(30, TimeUnit.SECONDS).ignoreExceptions()
            .until(() -> ADMIN.examineTopicRouteInfo(cluster).getBrokerDatas().size() == count);
    }

    /** Nothing that a client sees waits for a dispatch here. */
    public boolean awaitDispatchMs(long limitMs) throws Exception {
        return true;
    }

    static BrokerController startAgain(String broker) {
        NODES.get(broker).start();
        return remote(broker);
    }

    private static BrokerController remote(String broker) {
        return Remote.broker(NODES.get(broker), broker, ADMIN);
    }

    public static String initTopic() {
        return initTopicWithName(MQRandomUtils.getRandomTopic());
    }

    public static String initTopic(TopicMessageType type) {
        return initTopicWithName(MQRandomUtils.getRandomTopic(), type);
    }

    public static String initTopicWithName(String topic) {
        return initTopicWithName(topic, TopicMessageType.NORMAL);
    }

    public static String initTopicWithName(String topic, TopicMessageType type) {
        return initTopicOnSampleTopicBroker(topic, CLUSTER_NAME, type);
    }

    public static String initTopicOnSampleTopicBroker(String sample) {
        return initTopicOnSampleTopicBroker(MQRandomUtils.getRandomTopic(), sample);
    }

    public static String initTopicOnSampleTopicBroker(String sample, TopicMessageType type) {
        return initTopicOnSampleTopicBroker(MQRandomUtils.getRandomTopic(), sample, type);
    }

    public static String initTopicOnSampleTopicBroker(String topic, String sample) {
        return initTopicOnSampleTopicBroker(topic, sample, TopicMessageType.NORMAL);
    }

    public static String initTopicOnSampleTopicBroker(String topic, String sample, TopicMessageType type) {
        IntegrationTestBase.initTopic(topic, NAMESRV_ADDR, sample, QUEUE_NUMBERS, CQType.SimpleCQ, type);
        return topic;
    }

    public static String initConsumerGroup() {
        return initConsumerGroup(MQRandomUtils.getRandomConsumerGroup());
    }

    public static String initConsumerGroup(String group) {
        SubscriptionGroupConfig config = new SubscriptionGroupConfig();
        config.setGroupName(group);
        return initConsumerGroup(config);
    }

    public static String initConsumerGroup(SubscriptionGroupConfig config) {
        MQAdminTestUtils.createSub(NAMESRV_ADDR, CLUSTER_NAME, config);
        return config.getGroupName();
    }

    public static DefaultMQAdminExt getAdmin(String namesrv) {
        DefaultMQAdminExt admin = new DefaultMQAdminExt(3_000);
        admin.setNamesrvAddr(namesrv);
        admin.setPollNameServerInterval(100);
        return known(admin);
    }

    public static RMQNormalProducer getProducer(String namesrv, String topic) {
        return getProducer(namesrv, topic, false);
    }

    public static RMQNormalProducer getProducer(String namesrv, String topic, boolean tls) {
        return known(new RMQNormalProducer(namesrv, topic, tls));
    }

    public static RMQNormalProducer getProducer(String namesrv, String topic, String group, String instance) {
        return known(new RMQNormalProducer(namesrv, topic, group, instance));
    }

    public static RMQTransactionalProducer getTransactionalProducer(String namesrv, String topic, TransactionListener listener) {
        return known(new RMQTransactionalProducer(namesrv, topic, false, listener));
    }

    public static RMQAsyncSendProducer getAsyncProducer(String namesrv, String topic) {
        return known(new RMQAsyncSendProducer(namesrv, topic));
    }

    public static RMQNormalConsumer getConsumer(String namesrv, String topic, String expression, AbstractListener listener) {
        return getConsumer(namesrv, topic, expression, listener, false);
    }

    public static RMQNormalConsumer getConsumer(String namesrv, String topic, String expression, AbstractListener listener, boolean tls) {
        return getConsumer(namesrv, initConsumerGroup(), topic, expression, listener, tls);
    }

    public static RMQNormalConsumer getConsumer(String namesrv, String group, String topic, String expression, AbstractListener listener) {
        return getConsumer(namesrv, group, topic, expression, listener, false);
    }

    public static RMQNormalConsumer getConsumer(String namesrv, String group, String topic, String expression,
        AbstractListener listener, boolean tls) {
        return known(ConsumerFactory.getRMQNormalConsumer(namesrv, group, topic, expression, listener, tls));
    }

    public static Set<String> getBrokers() {
        return NODES.keySet();
    }

    /** Ends the clients that this class made since the last call. */
    public static void shutdown() {
        List<Object> clients = List.copyOf(mqClients);
        mqClients.clear();
        shutdown(clients);
    }

    /** Ends clients of any kind, beside each other: some take seconds. */
    public static void shutdown(List<Object> clients) {
        clients.forEach(client -> ForkJoinPool.commonPool().execute(() -> {
            if (client instanceof MQProducer producer) {
                producer.shutdown();
            } else if (client instanceof MQConsumer consumer) {
                consumer.shutdown();
            } else if (client instanceof MQAdminExt admin) {
                admin.shutdown();
            } else if (client instanceof org.apache.rocketmq.client.producer.MQProducer producer) {
                producer.shutdown();
            } else if (client instanceof org.apache.rocketmq.client.consumer.MQPushConsumer consumer) {
                consumer.shutdown();
            } else if (client instanceof org.apache.rocketmq.client.consumer.MQPullConsumer consumer) {
                consumer.shutdown();
            }
        }));
    }

    private static <T> T known(T client) {
        mqClients.add(client);
        return client;
    }
}
