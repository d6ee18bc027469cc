package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.Consumer;
import java.util.stream.IntStream;
import org.apache.rocketmq.client.ClientConfig;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.MixAll;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.protocol.admin.OffsetWrapper;
import org.apache.rocketmq.remoting.protocol.route.BrokerData;
import org.apache.rocketmq.remoting.protocol.route.QueueData;
import org.apache.rocketmq.remoting.protocol.route.TopicRouteData;
import org.apache.rocketmq.remoting.protocol.subscription.SubscriptionGroupConfig;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;
import ringmq.rig.Until;

/** The stock clients of one test, all closed with it, and the few things every test does with them. */
final class Clients implements AutoCloseable {
    /** For what needs some round trips and threads of a client: longer than the 20 s after which one balances again. */
    static final Duration SOON = Duration.ofSeconds(45);
    /** For what waits for a timer of the client or of the broker, up to 30 s each. */
    static final Duration LATER = Duration.ofSeconds(75);

    private static final int SEND_TIMEOUT_MS = 15_000;
    private static final int API_TIMEOUT_MS = 10_000;
    private static final int ADMIN_TIMEOUT_MS = 30_000;
    private static final int TIMER_MS = 2_000;
    private static final String RUN = Long.toString(System.currentTimeMillis(), 36);
    private static final AtomicInteger NEXT = new AtomicInteger();

    private final String namesrv;
    private final List<Runnable> closers = new ArrayList<>();
    private DefaultMQAdminExt admin;
    private DefaultMQPullConsumer reader;

    /** Clients of the cluster behind these NameServers, separated by semicolons. */
    Clients(String namesrv) {
        this.namesrv = namesrv;
    }

    /** A name of a topic or a group that nothing else uses. */
    static String unique(String what) {
        return what + "-" + RUN + "-" + NEXT.incrementAndGet();
    }

    String namesrv() {
        return namesrv;
    }

    DefaultMQProducer producer() throws Exception {
        return producer(settings -> { });
    }

    DefaultMQProducer producer(Consumer<DefaultMQProducer> settings) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer(unique("producers"));
        settle(producer);
        producer.setSendMsgTimeout(SEND_TIMEOUT_MS);
        settings.accept(producer);
        producer.start();
        closers.add(producer::shutdown);
        return producer;
    }

    /** A producer of transactions, started. */
    TransactionMQProducer transactions(String group, TransactionListener listener) throws Exception {
        TransactionMQProducer producer = new TransactionMQProducer(group);
        settle(producer);
        producer.setSendMsgTimeout(SEND_TIMEOUT_MS);
        producer.setTransactionListener(listener);
        producer.start();
        closers.add(producer::shutdown);
        return producer;
    }

    /** A push consumer that begins at the first message, not yet started. */
    DefaultMQPushConsumer push(String group, String topic, String tags) throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group);
        settle(consumer);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, tags);
        closers.add(consumer::shutdown);
        return consumer;
    }

    /** A started push consumer whose messages go into an inbox. */
    Inbox inbox(String group, String topic) throws Exception {
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = push(group, topic, "*");
        consumer.registerMessageListener(inbox);
        consumer.start();
        return inbox;
    }

    /** A pull consumer, started. */
    DefaultMQPullConsumer pull(String group) throws Exception {
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer(group);
        settle(consumer);
        consumer.start();
        closers.add(consumer::shutdown);
        return consumer;
    }

    /** A lite pull consumer that begins at the first message, not yet started. */
    DefaultLitePullConsumer litePull(String group) {
        DefaultLitePullConsumer consumer = new DefaultLitePullConsumer(group);
        settle(consumer);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        closers.add(consumer::shutdown);
        return consumer;
    }

    DefaultMQAdminExt admin() throws Exception {
        if (admin == null) {
            admin = new DefaultMQAdminExt(unique("admins"), ADMIN_TIMEOUT_MS);
            settle(admin);
            admin.start();
            closers.add(admin::shutdown);
        }
        return admin;
    }

    /** Makes a topic with so many queues on each broker of the cluster, and waits until the NameServer knows it everywhere. */
    String topic(int queues) throws Exception {
        String topic = unique("topic");
        List<String> brokers = brokers();
        for (String broker : brokers) {
            admin().createAndUpdateTopicConfig(broker, new TopicConfig(topic, queues, queues));
        }
        awaitRoute(topic, brokers.size() * queues);
        return topic;
    }

    /** Makes a group, with the topic of its retries, of which a consumer would otherwise learn only at a later rebalance. */
    String group() throws Exception {
        String group = unique("group");
        SubscriptionGroupConfig config = new SubscriptionGroupConfig();
        config.setGroupName(group);
        List<String> brokers = brokers();
        for (String broker : brokers) {
            admin().createAndUpdateSubscriptionGroupConfig(broker, config);
            admin().createAndUpdateTopicConfig(broker, new TopicConfig(MixAll.getRetryTopic(group), 1, 1));
        }
        awaitRoute(MixAll.getRetryTopic(group), brokers.size());
        return group;
    }

    /** Addresses of the cluster's masters. */
    List<String> brokers() throws Exception {
        return admin().examineBrokerClusterInfo().getBrokerAddrTable().values().stream()
            .map(BrokerData::selectBrokerAddr).toList();
    }

    /** Waits until the topic's route has exactly so many queues to write to, at the NameServer that the tools ask. */
    void awaitRoute(String topic, int queues) {
        Until.holds(LATER, topic + " has a route of " + queues + " queues", () -> {
            TopicRouteData route = admin().examineTopicRouteInfo(topic);
            return route.getQueueDatas().stream().mapToInt(QueueData::getWriteQueueNums).sum() == queues;
        });
    }

    Set<MessageQueue> queues(String topic) throws Exception {
        return reader().fetchSubscribeMessageQueues(topic);
    }

    /** Every message of every queue, each queue in its order; checks that the offsets have no holes. */
    List<MessageExt> read(String topic) throws Exception {
        List<MessageExt> all = new ArrayList<>();
        for (MessageQueue queue : queues(topic)) {
            all.addAll(read(queue));
        }
        return all;
    }

    List<MessageExt> read(MessageQueue queue) throws Exception {
        List<MessageExt> all = new ArrayList<>();
        long next = reader().minOffset(queue);
        long end = reader().maxOffset(queue);
        while (next < end) {
            PullResult result = reader().pull(queue, "*", next, 32);
            assertEquals(PullStatus.FOUND, result.getPullStatus(), queue + " at " + next);
            for (MessageExt message : result.getMsgFoundList()) {
                assertEquals(next, message.getQueueOffset(), "a hole or a repetition in " + queue);
                assertEquals(queue.getQueueId(), message.getQueueId());
                assertEquals(queue.getTopic(), message.getTopic());
                all.add(message);
                next++;
            }
            assertEquals(next, result.getNextBeginOffset());
        }
        return all;
    }

    /** Waits until the group has committed the end of each of the topic's queues. */
    void awaitCommitted(String group, String topic) {
        Until.holds(LATER, group + " has consumed " + topic, () -> {
            Map<MessageQueue, OffsetWrapper> offsets = admin().examineConsumeStats(group, topic).getOffsetTable();
            return offsets.keySet().equals(queues(topic))
                && offsets.values().stream().allMatch(o -> o.getConsumerOffset() == o.getBrokerOffset());
        });
    }

    /** Waits until all that the broker knows is on its disk: offsets go there a little later. */
    void awaitDurable(String broker) {
        Until.holds(LATER, broker + " has written everything", () -> {
            Map<String, String> state = admin().fetchBrokerRuntimeStats(broker).getTable();
            return state.getOrDefault("ringmq_offsets_unwritten", "0").equals("0")
                && state.get("remainHowManyDataToFlush").startsWith("0 ");
        });
    }

    /** The message with this id; asks again, because the client waits six seconds for an answer, whatever it is told. */
    MessageExt view(String topic, String id) throws Exception {
        AtomicReference<MessageExt> found = new AtomicReference<>();
        Until.holds(SOON, id + " is found", () -> {
            found.set(admin().viewMessage(topic, id));
            return true;
        });
        return found.get();
    }

    /** Waits until the topic holds so many messages, for those whose sending is not answered. */
    void awaitCount(String topic, int count) {
        Until.holds(SOON, topic + " holds " + count + " messages", () -> {
            long sum = 0;
            for (MessageQueue queue : queues(topic)) {
                sum += reader().maxOffset(queue);
            }
            return sum == count;
        });
    }

    /** Sends messages with these bodies in turn and expects each to be stored. */
    List<SendResult> send(DefaultMQProducer producer, String topic, List<String> bodies) throws Exception {
        List<SendResult> results = new ArrayList<>();
        for (String body : bodies) {
            SendResult result = producer.send(new Message(topic, bytes(body)));
            assertEquals(SendStatus.SEND_OK, result.getSendStatus());
            results.add(result);
        }
        return results;
    }

    /** {@code prefix-0}, {@code prefix-1}, and so on. */
    static List<String> bodies(String prefix, int count) {
        return IntStream.range(0, count).mapToObj(i -> prefix + "-" + i).toList();
    }

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static String text(Message message) {
        return new String(message.getBody(), StandardCharsets.UTF_8);
    }

    static List<String> texts(List<MessageExt> messages) {
        return messages.stream().map(Clients::text).toList();
    }

    /** All at once: a client's shutdown often waits three seconds for one of its threads. */
    @Override
    public void close() {
        List<Thread> threads = closers.stream().map(Thread::new).toList();
        closers.clear();
        threads.forEach(Thread::start);
        for (Thread thread : threads) {
            try {
                thread.join();
            } catch (InterruptedException e) {
                throw new AssertionError("interrupted while closing clients", e);
            }
        }
    }

    // A client instance of its own, whose timers are short. With the default of 30 s between heartbeats a consumer can stand still
    // for that long after its start: when two of its heartbeats meet it drops one, and the broker then knows an old subscription.
    private void settle(ClientConfig client) {
        client.setNamesrvAddr(namesrv);
        client.setInstanceName(unique("instance"));
        client.setHeartbeatBrokerInterval(TIMER_MS);
        client.setPollNameServerInterval(TIMER_MS);
        client.setPersistConsumerOffsetInterval(TIMER_MS);
        client.setMqClientApiTimeout(API_TIMEOUT_MS);
    }

    private DefaultMQPullConsumer reader() throws Exception {
        if (reader == null) {
            reader = pull(unique("readers"));
        }
        return reader;
    }
}
