package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.stream.Stream;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageConst;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageRequestMode;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import ringmq.rig.Node;
import ringmq.rig.Rig;
import ringmq.rig.Until;

/** The stock push consumer in pop mode: the broker says which queues it has, and knows what it was given. */
class PopTest {
    private static final int TIMEOUT_MS = 10_000;

    private Node node;
    private Clients clients;

    @BeforeEach
    void open() {
        node = Rig.dev();
        clients = new Clients(node.namesrv());
    }

    @AfterEach
    void close() {
        clients.close();
        node.close();
    }

    @Test
    void eachMessageComesOnce() throws Exception {
        String topic = clients.topic(4);
        String group = popping(topic, 0);
        Inbox one = inbox(group, topic);
        Inbox two = inbox(group, topic);
        List<String> bodies = Clients.bodies("m", 400);
        clients.send(clients.producer(), topic, bodies);
        Until.holds(Clients.LATER, () -> "all of them: " + one.texts().size() + " and " + two.texts().size(),
            () -> one.texts().size() + two.texts().size() >= bodies.size());
        List<String> seen = Stream.concat(one.texts().stream(), two.texts().stream()).sorted().toList();
        assertEquals(bodies.stream().sorted().toList(), seen);
        one.messages().forEach(m -> assertNotNull(m.getProperty(MessageConst.PROPERTY_POP_CK)));
        // Acknowledgements become the group's offsets.
        clients.awaitCommitted(group, topic);
    }

    @Test
    void queuesAreShared() throws Exception {
        String topic = clients.topic(4);
        String group = popping(topic, 1);
        List<Inbox> inboxes = List.of(inbox(group, topic), inbox(group, topic), inbox(group, topic));
        List<String> bodies = Clients.bodies("m", 200);
        clients.send(clients.producer(), topic, bodies);
        clients.awaitCommitted(group, topic);
        List<String> seen = inboxes.stream().flatMap(inbox -> inbox.texts().stream()).sorted().toList();
        assertEquals(bodies.stream().sorted().toList(), seen);
    }

    @Test
    void comesAgainLater() throws Exception {
        String topic = clients.topic(2);
        String group = popping(topic, 0);
        Queue<MessageExt> seen = new ConcurrentLinkedQueue<>();
        start(group, topic, "tag", (batch, context) -> {
            seen.addAll(batch);
            return batch.get(0).getReconsumeTimes() == 0 ? ConsumeConcurrentlyStatus.RECONSUME_LATER : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        Message message = new Message(topic, "tag", "key", Clients.bytes("again"));
        message.putUserProperty("own", "价值");
        DefaultMQProducer producer = clients.producer();
        producer.send(new Message(topic, "other", Clients.bytes("not wanted")));
        String id = producer.send(message).getMsgId();
        Until.holds(Clients.LATER, () -> "two deliveries: " + seen.size(), () -> seen.size() >= 2);
        clients.awaitCommitted(group, topic);
        List<MessageExt> deliveries = List.copyOf(seen);
        assertEquals(2, deliveries.size());
        for (int i = 0; i < 2; i++) {
            MessageExt delivery = deliveries.get(i);
            assertEquals(i, delivery.getReconsumeTimes());
            assertEquals(topic, delivery.getTopic(), "the client shows the topic it was sent to");
            assertEquals("again", Clients.text(delivery));
            assertEquals("key", delivery.getKeys());
            assertEquals("价值", delivery.getUserProperty("own"));
            assertEquals(id, delivery.getMsgId());
        }
    }

    @Test
    void comesAgainWhenItsTimeIsOver() throws Exception {
        String topic = clients.topic(1);
        String group = popping(topic, 0);
        Queue<Integer> seen = new ConcurrentLinkedQueue<>();
        DefaultMQPushConsumer consumer = consumer(group, topic, "*");
        // The shortest that the client asks for.
        consumer.setPopInvisibleTime(10_000);
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            int times = batch.get(0).getReconsumeTimes();
            seen.add(times);
            if (times == 0) {
                Until.holds(Clients.LATER, "it comes again while it is consumed", () -> seen.contains(1));
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        clients.send(clients.producer(), topic, List.of("slow"));
        Until.holds(Clients.LATER, () -> "a second delivery: " + seen, () -> seen.size() >= 2);
        clients.awaitCommitted(group, topic);
        assertEquals(List.of(0, 1), List.copyOf(seen));
    }

    @Test
    void consumersGoOnAfterSigkill() throws Exception {
        String topic = clients.topic(3);
        String group = popping(topic, 0);
        Inbox inbox = inbox(group, topic);
        DefaultMQProducer producer = clients.producer();
        List<String> before = Clients.bodies("before", 100);
        clients.send(producer, topic, before);
        inbox.awaitAll(Clients.LATER, before);
        clients.awaitCommitted(group, topic);
        // The last acknowledgements may still be on their way to the disk: the client does not wait for them.
        clients.awaitDurable(node.broker());
        node.kill();
        node.start();
        List<String> after = Clients.bodies("after", 100);
        Until.holds(Clients.LATER, "the producer sends again", () -> {
            producer.send(new Message(topic, Clients.bytes("again")));
            return true;
        });
        clients.send(producer, topic, after);
        inbox.awaitAll(Clients.LATER, after);
        clients.awaitCommitted(group, topic);
        List<String> seen = new ArrayList<>(inbox.texts());
        assertEquals(before.size(), seen.stream().filter(text -> text.startsWith("before")).count(), "acknowledged ones come once");
        assertTrue(seen.contains("again"));
    }

    /** A group that pops from the topic; its clients share queues with so many others, 0: with all. */
    private String popping(String topic, int share) throws Exception {
        String group = clients.group();
        clients.admin().setMessageRequestMode(node.broker(), topic, group, MessageRequestMode.POP, share, TIMEOUT_MS);
        return group;
    }

    private DefaultMQPushConsumer consumer(String group, String topic, String tags) throws Exception {
        DefaultMQPushConsumer consumer = clients.push(group, topic, tags);
        consumer.setClientRebalance(false);
        return consumer;
    }

    private void start(String group, String topic, String tags, MessageListenerConcurrently listener) throws Exception {
        DefaultMQPushConsumer consumer = consumer(group, topic, tags);
        consumer.registerMessageListener(listener);
        consumer.start();
    }

    private Inbox inbox(String group, String topic) throws Exception {
        Inbox inbox = new Inbox();
        start(group, topic, "*", inbox);
        return inbox;
    }
}
