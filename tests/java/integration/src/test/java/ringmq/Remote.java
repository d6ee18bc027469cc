package ringmq;

import static org.mockito.ArgumentMatchers.any;
import static org.mockito.ArgumentMatchers.anyBoolean;
import static org.mockito.ArgumentMatchers.anyInt;
import static org.mockito.ArgumentMatchers.anyLong;
import static org.mockito.ArgumentMatchers.anyString;
import static org.mockito.ArgumentMatchers.nullable;
import static org.mockito.Mockito.doAnswer;
import static org.mockito.Mockito.doNothing;
import static org.mockito.Mockito.doReturn;
import static org.mockito.Mockito.mock;
import static org.mockito.Mockito.withSettings;

import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Function;
import java.util.stream.Collectors;
import org.apache.rocketmq.broker.BrokerController;
import org.apache.rocketmq.broker.offset.ConsumerOffsetManager;
import org.apache.rocketmq.broker.pop.orderly.ConsumerOrderInfoManager;
import org.apache.rocketmq.broker.topic.TopicConfigManager;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.exception.OffsetNotFoundException;
import org.apache.rocketmq.client.impl.MQClientAPIImpl;
import org.apache.rocketmq.common.BrokerConfig;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.common.namesrv.NamesrvConfig;
import org.apache.rocketmq.namesrv.NamesrvController;
import org.apache.rocketmq.remoting.exception.RemotingConnectException;
import org.apache.rocketmq.remoting.protocol.RemotingCommand;
import org.apache.rocketmq.remoting.protocol.RequestCode;
import org.apache.rocketmq.remoting.protocol.ResponseCode;
import org.apache.rocketmq.remoting.protocol.header.NotificationRequestHeader;
import org.apache.rocketmq.remoting.protocol.header.NotificationResponseHeader;
import org.apache.rocketmq.remoting.protocol.header.QueryConsumerOffsetRequestHeader;
import org.apache.rocketmq.store.DefaultMessageStore;
import org.apache.rocketmq.store.MessageStore;
import org.apache.rocketmq.store.config.MessageStoreConfig;
import org.apache.rocketmq.store.exception.ConsumeQueueException;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;
import org.junit.AssumptionViolatedException;
import org.mockito.stubbing.Answer;
import ringmq.rig.Node;
import ringmq.rig.Rig;

/**
 * Servers that are processes of their own, in the shape of the objects that Apache's tests hold: what a test does to such an
 * object is asked of the process, by a request. What cannot be asked from outside leaves the test out.
 */
public final class Remote {
    private static final long REQUEST_MS_MAX = 10_000;

    private static final Answer<Object> INSIDE = call -> {
        throw new AssumptionViolatedException("needs the server inside this JVM: " + call.getMethod());
    };

    /** How settings get to a server: UPDATE_BROKER_CONFIG (25) or UPDATE_NAMESRV_CONFIG (318). */
    private interface Sender {
        void send(Properties properties) throws Exception;
    }

    /** Starts brokers of these names, beside each other. (Not in the tests' base class: other threads wait for its initialization.) */
    public static Map<String, Node> start(Map<String, String> settings, String cluster, List<String> names, String namesrv) {
        return names.parallelStream().collect(Collectors.toMap(Function.identity(),
            name -> Rig.broker(Rig.kind(), settings, cluster, name, namesrv)));
    }

    /** A broker called {@code name} that runs in {@code node}. */
    public static BrokerController broker(Node node, String name, DefaultMQAdminExt admin) {
        String address = node.broker();
        BrokerConfig config = new BrokerConfig();
        config.setBrokerName(name);
        BrokerConfig brokerConfig = settable(BrokerConfig.class, config, properties -> admin.updateBrokerConfig(address, properties));
        MessageStoreConfig storeConfig =
            settable(MessageStoreConfig.class, new MessageStoreConfig(), properties -> admin.updateBrokerConfig(address, properties));
        MessageStore store = store(name, admin);
        TopicConfigManager topics = topics(address, admin);
        ConsumerOffsetManager offsets = offsets(address, admin);
        ConsumerOrderInfoManager orders = orders(address, name, admin);

        BrokerController broker = mock(BrokerController.class, withSettings().stubOnly().defaultAnswer(INSIDE));
        doReturn(address).when(broker).getBrokerAddr();
        doReturn(brokerConfig).when(broker).getBrokerConfig();
        doReturn(storeConfig).when(broker).getMessageStoreConfig();
        doReturn(store).when(broker).getMessageStore();
        doReturn(topics).when(broker).getTopicConfigManager();
        doReturn(offsets).when(broker).getConsumerOffsetManager();
        doReturn(orders).when(broker).getConsumerOrderInfoManager();
        // Processes register by themselves whenever their topics change.
        doNothing().when(broker).registerBrokerAll(anyBoolean(), anyBoolean(), anyBoolean());
        doAnswer(call -> {
            node.stop();
            return null;
        }).when(broker).shutdown();
        return broker;
    }

    /** A NameServer, of which tests change settings. */
    public static NamesrvController namesrv(Node node, DefaultMQAdminExt admin) {
        NamesrvConfig config = settable(NamesrvConfig.class, new NamesrvConfig(),
            properties -> admin.updateNameServerConfig(properties, List.of(node.namesrv())));
        NamesrvController namesrv = mock(NamesrvController.class, withSettings().stubOnly().defaultAnswer(INSIDE));
        doReturn(config).when(namesrv).getNamesrvConfig();
        return namesrv;
    }

    /** A configuration whose setters also change the server. */
    private static <T> T settable(Class<T> type, T config, Sender sender) {
        return mock(type, withSettings().stubOnly().spiedInstance(config).defaultAnswer(call -> {
            String name = call.getMethod().getName();
            Object result = call.callRealMethod();
            if (name.startsWith("set") && call.getArguments().length == 1) {
                Properties properties = new Properties();
                properties.setProperty(name.substring(3, 4).toLowerCase(Locale.ROOT) + name.substring(4), String.valueOf(call.getArguments()[0]));
                try {
                    sender.send(properties);
                } catch (RemotingConnectException down) {
                    // The test has stopped the server, and what it sets before it starts it again is of a stock server's insides.
                    return result;
                }
            }
            return result;
        }));
    }

    private static MessageStore store(String broker, DefaultMQAdminExt admin) {
        DefaultMessageStore store = mock(DefaultMessageStore.class, withSettings().stubOnly().defaultAnswer(INSIDE));
        doAnswer(call -> admin.minOffset(new MessageQueue(call.getArgument(0), broker, call.getArgument(1))))
            .when(store).getMinOffsetInQueue(anyString(), anyInt());
        try {
            doAnswer(call -> admin.maxOffset(new MessageQueue(call.getArgument(0), broker, call.getArgument(1))))
                .when(store).getMaxOffsetInQueue(anyString(), anyInt());
        } catch (ConsumeQueueException e) {
            throw new AssertionError("it is only described here", e);
        }
        return store;
    }

    private static TopicConfigManager topics(String address, DefaultMQAdminExt admin) {
        TopicConfigManager topics = mock(TopicConfigManager.class, withSettings().stubOnly().defaultAnswer(INSIDE));
        doAnswer(call -> new ConcurrentHashMap<>(admin.getAllTopicConfig(address, REQUEST_MS_MAX).getTopicConfigTable()))
            .when(topics).getTopicConfigTable();
        doAnswer(call -> {
            admin.createAndUpdateTopicConfig(address, call.getArgument(0));
            return null;
        }).when(topics).updateTopicConfig(any(TopicConfig.class));
        return topics;
    }

    private static ConsumerOffsetManager offsets(String address, DefaultMQAdminExt admin) {
        ConsumerOffsetManager offsets = mock(ConsumerOffsetManager.class, withSettings().stubOnly().defaultAnswer(INSIDE));
        doAnswer(call -> offset(address, admin, call.getArgument(0), call.getArgument(1), call.getArgument(2)))
            .when(offsets).queryOffset(anyString(), anyString(), anyInt());
        return offsets;
    }

    /** Whether a queue is kept from a group: something is left in it, and who wants it in order is not told so (NOTIFICATION). */
    private static ConsumerOrderInfoManager orders(String address, String broker, DefaultMQAdminExt admin) {
        ConsumerOrderInfoManager orders = mock(ConsumerOrderInfoManager.class, withSettings().stubOnly().defaultAnswer(INSIDE));
        doAnswer(call -> {
            String topic = call.getArgument(1);
            String group = call.getArgument(2);
            int queue = call.getArgument(3);
            NotificationRequestHeader header = new NotificationRequestHeader();
            header.setAttemptId(call.getArgument(0));
            header.setTopic(topic);
            header.setConsumerGroup(group);
            header.setQueueId(queue);
            header.setOrder(true);
            header.setPollTime(0);
            header.setBornTime(System.currentTimeMillis());
            RemotingCommand answer = api(admin).getRemotingClient()
                .invokeSync(address, RemotingCommand.createRequestCommand(RequestCode.NOTIFICATION, header), REQUEST_MS_MAX);
            if (answer.getCode() != ResponseCode.SUCCESS) {
                throw new MQBrokerException(answer.getCode(), answer.getRemark(), address);
            }
            boolean isTold = answer.decodeCommandCustomHeader(NotificationResponseHeader.class).isHasMsg();
            return !isTold && offset(address, admin, group, topic, queue) < admin.maxOffset(new MessageQueue(topic, broker, queue));
        }).when(orders).checkBlock(nullable(String.class), anyString(), anyString(), anyInt(), anyLong());
        return orders;
    }

    /** What a group has committed; -1: nothing. */
    private static long offset(String address, DefaultMQAdminExt admin, String group, String topic, int queue) throws Exception {
        QueryConsumerOffsetRequestHeader header = new QueryConsumerOffsetRequestHeader();
        header.setConsumerGroup(group);
        header.setTopic(topic);
        header.setQueueId(queue);
        header.setSetZeroIfNotFound(false);
        try {
            return api(admin).queryConsumerOffset(address, header, REQUEST_MS_MAX);
        } catch (OffsetNotFoundException none) {
            return -1;
        }
    }

    private static MQClientAPIImpl api(DefaultMQAdminExt admin) {
        return admin.getDefaultMQAdminExtImpl().getMqClientInstance().getMQClientAPIImpl();
    }

    private Remote() {}
}
