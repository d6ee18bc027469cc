package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageDecoder;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.protocol.ResponseCode;
import org.junit.jupiter.api.Test;

/** Every way to send; afterwards the topic holds each message once, whole, at the offset that was answered. */
class SendTest extends SharedServer {
    @Test
    void sync() throws Exception {
        String topic = clients.topic(4);
        List<String> bodies = Clients.bodies("sync", 100);
        List<SendResult> results = clients.send(clients.producer(), topic, bodies);

        Map<MessageQueue, Map<Long, String>> answered = new HashMap<>();
        for (int i = 0; i < bodies.size(); i++) {
            SendResult result = results.get(i);
            answered.computeIfAbsent(result.getMessageQueue(), q -> new HashMap<>()).put(result.getQueueOffset(), bodies.get(i));
            assertEquals(node.broker(), MessageDecoder.decodeMessageId(result.getOffsetMsgId()).getAddress().toString().replaceFirst("^.*/", ""));
        }
        assertEquals(4, answered.size(), "a producer takes the queues in turn");
        for (MessageQueue queue : answered.keySet()) {
            List<MessageExt> stored = clients.read(queue);
            assertEquals(answered.get(queue).size(), stored.size());
            for (MessageExt message : stored) {
                assertEquals(answered.get(queue).get(message.getQueueOffset()), Clients.text(message));
            }
        }
    }

    @Test
    void async() throws Exception {
        String topic = clients.topic(4);
        DefaultMQProducer producer = clients.producer();
        List<String> bodies = Clients.bodies("async", 1000);
        Queue<Throwable> failures = new ConcurrentLinkedQueue<>();
        Set<String> places = ConcurrentHashMap.newKeySet();
        CountDownLatch answers = new CountDownLatch(bodies.size());
        for (String body : bodies) {
            producer.send(new Message(topic, Clients.bytes(body)), new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    if (result.getSendStatus() != SendStatus.SEND_OK) {
                        failures.add(new AssertionError(result));
                    }
                    places.add(result.getMessageQueue().getQueueId() + "@" + result.getQueueOffset());
                    answers.countDown();
                }

                @Override
                public void onException(Throwable e) {
                    failures.add(e);
                    answers.countDown();
                }
            });
        }
        assertTrue(answers.await(Clients.SOON.toSeconds(), TimeUnit.SECONDS), answers.getCount() + " were never answered");
        assertEquals(List.of(), new ArrayList<>(failures));
        assertEquals(bodies.size(), places.size(), "each message has a place of its own");
        assertEquals(bodies.stream().sorted().toList(), Clients.texts(clients.read(topic)).stream().sorted().toList());
    }

    @Test
    void oneWay() throws Exception {
        String topic = clients.topic(4);
        DefaultMQProducer producer = clients.producer();
        List<String> bodies = Clients.bodies("one-way", 200);
        for (String body : bodies) {
            producer.sendOneway(new Message(topic, Clients.bytes(body)));
        }
        clients.awaitCount(topic, bodies.size());
        assertEquals(bodies.stream().sorted().toList(), Clients.texts(clients.read(topic)).stream().sorted().toList());
    }

    /** A producer that gathers what is sent at nearly the same time and sends it as batches. */
    @Test
    void autoBatch() throws Exception {
        String topic = clients.topic(4);
        DefaultMQProducer producer = clients.producer();
        producer.setAutoBatch(true);
        producer.batchMaxDelayMs(20);
        List<String> bodies = Clients.bodies("gathered", 500);
        Queue<Throwable> failures = new ConcurrentLinkedQueue<>();
        Map<String, String> places = new ConcurrentHashMap<>();
        CountDownLatch answers = new CountDownLatch(bodies.size());
        for (String body : bodies) {
            producer.send(new Message(topic, "tag", "key-" + body, Clients.bytes(body)), new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    places.put(result.getMessageQueue().getQueueId() + "@" + result.getQueueOffset(), body);
                    answers.countDown();
                }

                @Override
                public void onException(Throwable e) {
                    failures.add(e);
                    answers.countDown();
                }
            });
        }
        assertTrue(answers.await(Clients.SOON.toSeconds(), TimeUnit.SECONDS), answers.getCount() + " were never answered");
        assertEquals(List.of(), new ArrayList<>(failures));
        Map<String, String> stored = new HashMap<>();
        Set<Long> times = new HashSet<>();
        for (MessageExt message : clients.read(topic)) {
            stored.put(message.getQueueId() + "@" + message.getQueueOffset(), Clients.text(message));
            assertEquals("key-" + Clients.text(message), message.getKeys());
            times.add(message.getBornTimestamp());
        }
        assertEquals(bodies.size(), places.size(), "each message has a place of its own");
        assertEquals(places, stored);
        assertTrue(times.size() < bodies.size() / 2, "those of a batch were born together: " + times.size());
    }

    @Test
    void batch() throws Exception {
        String topic = clients.topic(4);
        List<String> bodies = Clients.bodies("batch", 50);
        List<Message> batch = new ArrayList<>();
        for (String body : bodies) {
            Message message = new Message(topic, "tag-" + body, "key-" + body, Clients.bytes(body));
            message.putUserProperty("of", body);
            batch.add(message);
        }
        SendResult result = clients.producer().send(batch);
        assertEquals(SendStatus.SEND_OK, result.getSendStatus());
        assertEquals(bodies.size(), new HashSet<>(List.of(result.getMsgId().split(","))).size(), "each has its unique key");
        assertEquals(bodies.size(), new HashSet<>(List.of(result.getOffsetMsgId().split(","))).size(), "each has its place");

        List<MessageExt> stored = clients.read(result.getMessageQueue());
        assertEquals(bodies, Clients.texts(stored), "one queue holds all, in order");
        assertEquals(0, result.getQueueOffset());
        for (MessageExt message : stored) {
            assertEquals("tag-" + Clients.text(message), message.getTags());
            assertEquals("key-" + Clients.text(message), message.getKeys());
            assertEquals(Clients.text(message), message.getUserProperty("of"));
        }
        assertEquals(bodies.size(), clients.read(topic).size(), "and no other queue holds any");
    }

    @Test
    void ordered() throws Exception {
        String topic = clients.topic(4);
        DefaultMQProducer producer = clients.producer();
        Map<Integer, List<String>> sent = new HashMap<>();
        for (int i = 0; i < 200; i++) {
            int order = i % 7;
            String body = order + ":" + i;
            SendResult result = producer.send(new Message(topic, Clients.bytes(body)),
                (queues, message, argument) -> queues.get((Integer) argument % queues.size()), order);
            assertEquals(SendStatus.SEND_OK, result.getSendStatus());
            sent.computeIfAbsent(order % 4, q -> new ArrayList<>()).add(body);
        }
        Set<List<String>> stored = new HashSet<>();
        for (MessageQueue queue : clients.queues(topic)) {
            stored.add(Clients.texts(clients.read(queue)));
        }
        assertEquals(new HashSet<>(sent.values()), stored, "each queue holds its orders in the order of sending");
    }

    @Test
    void toOneQueue() throws Exception {
        String topic = clients.topic(4);
        DefaultMQProducer producer = clients.producer();
        MessageQueue third = producer.fetchPublishMessageQueues(topic).stream().filter(q -> q.getQueueId() == 2).findFirst().orElseThrow();
        for (int i = 0; i < 10; i++) {
            SendResult result = producer.send(new Message(topic, Clients.bytes("to-" + i)), third);
            assertEquals(third, result.getMessageQueue());
            assertEquals(i, result.getQueueOffset());
        }
        assertEquals(Clients.bodies("to", 10), Clients.texts(clients.read(third)));

        MessageQueue none = new MessageQueue(topic, third.getBrokerName(), 4);
        MQBrokerException refused = assertThrows(MQBrokerException.class,
            () -> producer.send(new Message(topic, Clients.bytes("nowhere")), none));
        assertEquals(ResponseCode.INVALID_PARAMETER, refused.getResponseCode());
        assertEquals(10, clients.read(topic).size());
    }

    @Test
    void topicOfItsOwnAccord() throws Exception {
        String topic = Clients.unique("new");
        DefaultMQProducer producer = clients.producer();
        List<String> bodies = Clients.bodies("first", 20);
        clients.send(producer, topic, bodies);
        clients.awaitRoute(topic, producer.getDefaultTopicQueueNums());
        assertEquals(bodies.stream().sorted().toList(), Clients.texts(clients.read(topic)).stream().sorted().toList());
    }

    @Test
    void fromManyThreads() throws Exception {
        String topic = clients.topic(8);
        List<Thread> threads = new ArrayList<>();
        Queue<Throwable> failures = new ConcurrentLinkedQueue<>();
        List<String> bodies = new ArrayList<>();
        for (int p = 0; p < 3; p++) {
            DefaultMQProducer producer = clients.producer();
            for (int t = 0; t < 4; t++) {
                List<String> mine = Clients.bodies("p" + p + "t" + t, 100);
                bodies.addAll(mine);
                threads.add(new Thread(() -> {
                    try {
                        clients.send(producer, topic, mine);
                    } catch (Throwable e) {
                        failures.add(e);
                    }
                }));
            }
        }
        threads.forEach(Thread::start);
        for (Thread thread : threads) {
            thread.join();
        }
        assertEquals(List.of(), new ArrayList<>(failures));
        assertEquals(bodies.stream().sorted().toList(), Clients.texts(clients.read(topic)).stream().sorted().toList());
    }
}
