package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Collection;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.MixAll;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageConst;
import org.apache.rocketmq.common.message.MessageExt;
import org.junit.jupiter.api.Test;
import ringmq.rig.Until;

/** What a listener fails to consume comes again later, and in the end lies in the group's dead-letter topic. */
class RetryTest extends SharedServer {
    /** The delay of level 3, with which retries begin when the client names none. */
    private static final long FIRST_DELAY_MS = 10_000;

    @Test
    void comesAgain() throws Exception {
        String topic = clients.topic(2);
        Queue<MessageExt> seen = new ConcurrentLinkedQueue<>();
        DefaultMQPushConsumer consumer = clients.push(Clients.unique("group"), topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            seen.addAll(batch);
            context.setDelayLevelWhenNextConsume(1);
            return batch.get(0).getReconsumeTimes() < 2 ? ConsumeConcurrentlyStatus.RECONSUME_LATER : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        Message message = new Message(topic, "tag", "key", Clients.bytes("again"));
        message.putUserProperty("own", "价值");
        String id = clients.producer().send(message).getMsgId();
        // The consumer learns of its retry topic, which its heartbeat made, at its next rebalance: up to 20 s later.
        Until.holds(Clients.LATER, () -> "three deliveries: " + seen.size(), () -> seen.stream().anyMatch(m -> m.getReconsumeTimes() == 2));

        List<MessageExt> deliveries = List.copyOf(seen);
        assertEquals(List.of(0, 1, 2), distinct(deliveries.stream().map(MessageExt::getReconsumeTimes).toList()));
        for (MessageExt delivery : deliveries) {
            assertEquals(topic, delivery.getTopic(), "the client shows the topic it was sent to");
            assertEquals("again", Clients.text(delivery));
            assertEquals("tag", delivery.getTags());
            assertEquals("key", delivery.getKeys());
            assertEquals("价值", delivery.getUserProperty("own"));
            assertEquals(id, delivery.getMsgId());
        }
    }

    @Test
    void firstDelay() throws Exception {
        String topic = clients.topic(1);
        Queue<Long> seen = new ConcurrentLinkedQueue<>();
        DefaultMQPushConsumer consumer = clients.push(clients.group(), topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            seen.add(System.currentTimeMillis());
            return seen.size() == 1 ? ConsumeConcurrentlyStatus.RECONSUME_LATER : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        clients.send(clients.producer(), topic, List.of("later"));
        Until.holds(Clients.LATER, () -> "a second delivery: " + seen, () -> seen.size() >= 2);
        List<Long> times = List.copyOf(seen);
        long delay = times.get(1) - times.get(0);
        assertTrue(delay >= FIRST_DELAY_MS - 500, "it came again after " + delay + " ms");
    }

    @Test
    void deadLetter() throws Exception {
        String topic = clients.topic(2);
        String group = clients.group();
        Map<String, Queue<Integer>> seen = new ConcurrentHashMap<>();
        DefaultMQPushConsumer consumer = clients.push(group, topic, "*");
        consumer.setMaxReconsumeTimes(2);
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            MessageExt message = batch.get(0);
            seen.computeIfAbsent(Clients.text(message), b -> new ConcurrentLinkedQueue<>()).add(message.getReconsumeTimes());
            context.setDelayLevelWhenNextConsume(1);
            return Clients.text(message).startsWith("bad") ? ConsumeConcurrentlyStatus.RECONSUME_LATER : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        DefaultMQProducer producer = clients.producer();
        List<String> bad = Clients.bodies("bad", 3);
        List<String> good = Clients.bodies("good", 3);
        clients.send(producer, topic, bad);
        clients.send(producer, topic, good);

        String dead = MixAll.getDLQTopic(group);
        clients.awaitRoute(dead, 1);
        Until.holds(Clients.LATER, dead + " holds them", () -> distinct(Clients.texts(clients.read(dead))).size() == 3);
        List<MessageExt> letters = clients.read(dead);
        assertEquals(bad, distinct(Clients.texts(letters)).stream().sorted().toList());
        for (MessageExt letter : letters) {
            assertEquals(topic, letter.getProperty(MessageConst.PROPERTY_RETRY_TOPIC));
            assertEquals(3, letter.getReconsumeTimes());
        }
        bad.forEach(body -> assertEquals(List.of(0, 1, 2), distinct(seen.get(body)), body));
        good.forEach(body -> assertEquals(List.of(0), List.copyOf(seen.get(body)), body));
    }

    @Test
    void deadLetterAtOnce() throws Exception {
        String topic = clients.topic(1);
        String group = Clients.unique("group");
        Queue<String> seen = new ConcurrentLinkedQueue<>();
        DefaultMQPushConsumer consumer = clients.push(group, topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            seen.add(Clients.text(batch.get(0)));
            context.setDelayLevelWhenNextConsume(-1);
            return ConsumeConcurrentlyStatus.RECONSUME_LATER;
        });
        consumer.start();
        clients.send(clients.producer(), topic, List.of("hopeless"));
        String dead = MixAll.getDLQTopic(group);
        clients.awaitRoute(dead, 1);
        Until.holds(Clients.LATER, dead + " holds it", () -> !clients.read(dead).isEmpty());
        assertEquals(List.of("hopeless"), distinct(Clients.texts(clients.read(dead))));
        assertEquals(List.of("hopeless"), distinct(seen));
    }

    @Test
    void orderlyRetriesInPlace() throws Exception {
        String topic = clients.topic(1);
        String group = Clients.unique("group");
        Queue<String> seen = new ConcurrentLinkedQueue<>();
        DefaultMQPushConsumer consumer = clients.push(group, topic, "*");
        consumer.setMaxReconsumeTimes(2);
        consumer.setSuspendCurrentQueueTimeMillis(50);
        consumer.registerMessageListener((MessageListenerOrderly) (batch, context) -> {
            seen.add(Clients.text(batch.get(0)));
            return Clients.text(batch.get(0)).equals("o-1") ? ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT : ConsumeOrderlyStatus.SUCCESS;
        });
        DefaultMQProducer producer = clients.producer();
        clients.send(producer, topic, Clients.bodies("o", 3));
        consumer.start();
        Until.holds(Clients.SOON, () -> "the message behind the bad one: " + seen, () -> seen.contains("o-2"));
        assertEquals(Clients.bodies("o", 3), distinct(seen));
        List<String> before = List.copyOf(seen).subList(0, List.copyOf(seen).indexOf("o-2"));
        assertTrue(Collections.frequency(before, "o-1") >= 3, () -> "nothing overtakes it before it is given up: " + seen);
        String dead = MixAll.getDLQTopic(group);
        clients.awaitRoute(dead, 1);
        Until.holds(Clients.LATER, dead + " holds it", () -> !clients.read(dead).isEmpty());
        assertEquals(List.of("o-1"), distinct(Clients.texts(clients.read(dead))));
    }

    /** Each once: a client that waits three or five seconds for an answer sends a message back twice. */
    private static <T> List<T> distinct(Collection<T> all) {
        return all.stream().distinct().toList();
    }
}
