package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.stream.Collectors;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.protocol.heartbeat.MessageModel;
import org.junit.jupiter.api.Test;
import ringmq.rig.Until;

/** Push consumers: every message once, each queue's order kept, groups and their members as RocketMQ has them. */
class PushTest extends SharedServer {
    @Test
    void concurrently() throws Exception {
        String topic = clients.topic(8);
        List<String> bodies = Clients.bodies("c", 300);
        clients.send(clients.producer(), topic, bodies.subList(0, 150));
        Inbox inbox = clients.inbox(Clients.unique("group"), topic);
        inbox.awaitExactly(bodies.subList(0, 150));
        clients.send(clients.producer(), topic, bodies.subList(150, 300));
        inbox.awaitExactly(bodies);
    }

    @Test
    void orderly() throws Exception {
        String topic = clients.topic(4);
        Map<Integer, Queue<String>> seen = new ConcurrentHashMap<>();
        Map<Integer, Thread> busy = new ConcurrentHashMap<>();
        Queue<String> overlaps = new ConcurrentLinkedQueue<>();
        DefaultMQPushConsumer consumer = clients.push(Clients.unique("group"), topic, "*");
        consumer.registerMessageListener((MessageListenerOrderly) (batch, context) -> {
            int queue = context.getMessageQueue().getQueueId();
            if (busy.putIfAbsent(queue, Thread.currentThread()) != null) {
                overlaps.add("queue " + queue);
            }
            batch.forEach(m -> seen.computeIfAbsent(m.getQueueId(), q -> new ConcurrentLinkedQueue<>()).add(Clients.text(m)));
            busy.remove(queue);
            return ConsumeOrderlyStatus.SUCCESS;
        });
        consumer.start();

        DefaultMQProducer producer = clients.producer();
        Map<Integer, List<String>> sent = new HashMap<>();
        for (int i = 0; i < 400; i++) {
            String body = "o-" + i;
            int queue = producer.send(new Message(topic, Clients.bytes(body)),
                (queues, message, order) -> queues.get((Integer) order % queues.size()), i % 8).getMessageQueue().getQueueId();
            sent.computeIfAbsent(queue, q -> new ArrayList<>()).add(body);
        }
        Until.holds(Clients.SOON, () -> "400 messages, but " + seen,
            () -> seen.values().stream().mapToInt(Queue::size).sum() >= 400);
        assertEquals(sent, seen.entrySet().stream().collect(Collectors.toMap(Map.Entry::getKey, e -> List.copyOf(e.getValue()))));
        assertEquals(List.of(), List.copyOf(overlaps), "no queue was consumed by two threads at once");
    }

    @Test
    void wakesAWaitingPull() throws Exception {
        String topic = clients.topic(2);
        Inbox inbox = clients.inbox(Clients.unique("group"), topic);
        DefaultMQProducer producer = clients.producer();
        clients.send(producer, topic, List.of("warm-0", "warm-1"));
        inbox.awaitExactly(List.of("warm-0", "warm-1"));
        // Both queues wait in a long poll now. A look at them only every five seconds would show in most of these.
        int atOnce = 0;
        for (int i = 0; i < 10; i++) {
            clients.send(producer, topic, List.of("late-" + i));
            long began = System.nanoTime();
            inbox.awaitAll(Clients.SOON, List.of("late-" + i));
            if (System.nanoTime() - began < Duration.ofSeconds(2).toNanos()) {
                atOnce++;
            }
        }
        assertTrue(atOnce >= 6, atOnce + " of 10 came at once");
    }

    @Test
    void tags() throws Exception {
        String topic = clients.topic(3);
        DefaultMQProducer producer = clients.producer();
        List<String> wanted = new ArrayList<>();
        for (int i = 0; i < 120; i++) {
            String tag = List.of("red", "green", "蓝").get(i % 3);
            String body = tag + "-" + i;
            producer.send(new Message(topic, tag, Clients.bytes(body)));
            if (!tag.equals("green")) {
                wanted.add(body);
            }
        }
        producer.send(new Message(topic, Clients.bytes("no tag")));
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = clients.push(Clients.unique("group"), topic, "red || 蓝");
        consumer.registerMessageListener(inbox);
        consumer.start();
        inbox.awaitExactly(wanted);
        // A message that matches wakes the waiting pull although others came between.
        producer.send(new Message(topic, "green", Clients.bytes("green-last")));
        producer.send(new Message(topic, "red", Clients.bytes("red-last")));
        wanted.add("red-last");
        inbox.awaitExactly(wanted);
    }

    @Test
    void broadcasting() throws Exception {
        String topic = clients.topic(4);
        String group = Clients.unique("group");
        List<Inbox> inboxes = List.of(new Inbox(), new Inbox());
        for (Inbox inbox : inboxes) {
            DefaultMQPushConsumer consumer = clients.push(group, topic, "*");
            consumer.setMessageModel(MessageModel.BROADCASTING);
            consumer.registerMessageListener(inbox);
            consumer.start();
        }
        List<String> bodies = Clients.bodies("b", 60);
        clients.send(clients.producer(), topic, bodies);
        for (Inbox inbox : inboxes) {
            inbox.awaitExactly(bodies);
        }
    }

    @Test
    void twoGroups() throws Exception {
        String topic = clients.topic(2);
        List<String> bodies = Clients.bodies("g", 40);
        clients.send(clients.producer(), topic, bodies);
        Inbox one = clients.inbox(Clients.unique("group"), topic);
        Inbox two = clients.inbox(Clients.unique("group"), topic);
        one.awaitExactly(bodies);
        two.awaitExactly(bodies);
    }

    @Test
    void rebalancing() throws Exception {
        String topic = clients.topic(6);
        String group = Clients.unique("group");
        DefaultMQProducer producer = clients.producer();
        Inbox first = new Inbox();
        DefaultMQPushConsumer one = clients.push(group, topic, "*");
        one.registerMessageListener(first);
        one.start();
        List<String> alone = Clients.bodies("alone", 30);
        clients.send(producer, topic, alone);
        first.awaitExactly(alone);
        assertEquals(clients.queues(topic), assigned(one, topic));

        Inbox second = new Inbox();
        DefaultMQPushConsumer two = clients.push(group, topic, "*");
        two.registerMessageListener(second);
        two.start();
        // The broker tells the first one at once (code 40): much sooner than the client's own 20 s.
        Until.holds(Duration.ofSeconds(15), () -> "three queues each: " + assigned(one, topic) + " and " + assigned(two, topic), () -> {
            Set<MessageQueue> both = new HashSet<>(assigned(one, topic));
            both.addAll(assigned(two, topic));
            return assigned(one, topic).size() == 3 && assigned(two, topic).size() == 3 && both.equals(clients.queues(topic));
        });
        List<String> together = Clients.bodies("together", 60);
        clients.send(producer, topic, together);
        Until.holds(Clients.SOON, () -> "60 messages in both: " + of(first, together).size() + " and " + of(second, together).size(),
            () -> of(first, together).size() + of(second, together).size() >= 60);
        assertEquals(30, of(first, together).size());
        assertEquals(30, of(second, together).size());
        assertEquals(new HashSet<>(together), union(of(first, together), of(second, together)));

        one.shutdown();
        Until.holds(Duration.ofSeconds(15), "the second has every queue", () -> assigned(two, topic).equals(clients.queues(topic)));
        List<String> after = Clients.bodies("after", 30);
        clients.send(producer, topic, after);
        second.awaitAll(Clients.SOON, after);
        assertEquals(30, of(second, after).size());
        assertTrue(of(first, after).isEmpty());
    }

    private static Set<MessageQueue> assigned(DefaultMQPushConsumer consumer, String topic) {
        return consumer.getDefaultMQPushConsumerImpl().getRebalanceImpl().getProcessQueueTable().keySet().stream()
            .filter(queue -> queue.getTopic().equals(topic)).collect(Collectors.toSet());
    }

    private static List<String> of(Inbox inbox, List<String> bodies) {
        return inbox.texts().stream().filter(new HashSet<>(bodies)::contains).toList();
    }

    private static Set<String> union(List<String> one, List<String> two) {
        Set<String> both = new HashSet<>(one);
        both.addAll(two);
        return both;
    }
}
