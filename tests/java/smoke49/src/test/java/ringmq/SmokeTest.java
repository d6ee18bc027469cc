package ringmq;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import java.util.Queue;
import java.util.Set;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.rocketmq.client.ClientConfig;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import ringmq.rig.Node;
import ringmq.rig.Rig;
import ringmq.rig.Until;

/** The main ways to send and to receive, with client 4.9.8, which has no admin tools here: topics are made by sending. */
class SmokeTest {
    private static final Duration SOON = Duration.ofSeconds(45);
    private static final Duration LATER = Duration.ofSeconds(75);
    private static final int TIMER_MS = 2_000;
    private static final int API_TIMEOUT_MS = 10_000;
    private static final AtomicInteger NEXT = new AtomicInteger();
    private static final String RUN = Long.toString(System.currentTimeMillis(), 36);

    private final Node node = Rig.shared();
    private final Deque<Runnable> closers = new ArrayDeque<>();

    @AfterEach
    void close() {
        while (!closers.isEmpty()) {
            closers.pop().run();
        }
    }

    @Test
    void sendAndRead() throws Exception {
        DefaultMQProducer producer = producer();
        String topic = unique("topic");
        List<String> bodies = bodies("sync", 40);
        for (String body : bodies) {
            SendResult result = producer.send(new Message(topic, "tag", "键-" + body, bytes(body)));
            assertEquals(SendStatus.SEND_OK, result.getSendStatus());
        }
        List<String> async = bodies("async", 40);
        Queue<Throwable> failures = new ConcurrentLinkedQueue<>();
        CountDownLatch answers = new CountDownLatch(async.size());
        for (String body : async) {
            producer.send(new Message(topic, bytes(body)), new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    answers.countDown();
                }

                @Override
                public void onException(Throwable e) {
                    failures.add(e);
                    answers.countDown();
                }
            });
        }
        assertTrue(answers.await(SOON.toSeconds(), TimeUnit.SECONDS));
        assertEquals(List.of(), List.copyOf(failures));
        List<String> batch = bodies("batch", 20);
        producer.send(batch.stream().map(body -> new Message(topic, bytes(body))).toList());
        byte[] large = bytes("很大 ".repeat(50_000));
        producer.send(new Message(topic, large));

        List<String> expected = new ArrayList<>(bodies);
        expected.addAll(async);
        expected.addAll(batch);
        List<MessageExt> stored = read(topic);
        assertArrayEquals(large, stored.stream().filter(m -> m.getBody().length > 100).findFirst().orElseThrow().getBody());
        assertEquals(expected.stream().sorted().toList(),
            stored.stream().filter(m -> m.getBody().length < 100).map(SmokeTest::text).sorted().toList());
        stored.stream().filter(m -> text(m).startsWith("sync")).forEach(m -> assertEquals("键-" + text(m), m.getKeys()));
        MessageExt one = stored.get(0);
        Until.holds(SOON, "found by its unique key", () -> producer.viewMessage(topic, one.getMsgId()).getQueueOffset() == one.getQueueOffset());
    }

    @Test
    void push() throws Exception {
        DefaultMQProducer producer = producer();
        String topic = unique("topic");
        List<String> bodies = bodies("push", 100);
        send(producer, topic, bodies.subList(0, 50));
        Queue<String> seen = new ConcurrentLinkedQueue<>();
        DefaultMQPushConsumer consumer = consumer(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            batch.forEach(m -> seen.add(text(m)));
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        Until.holds(LATER, () -> "50 messages, but " + seen.size(), () -> seen.size() >= 50);
        send(producer, topic, bodies.subList(50, 100));
        Until.holds(SOON, () -> "100 messages, but " + seen.size(), () -> seen.size() >= 100);
        assertEquals(bodies.stream().sorted().toList(), seen.stream().sorted().toList());
    }

    @Test
    void orderlyWithTags() throws Exception {
        DefaultMQProducer producer = producer();
        String topic = unique("topic");
        for (int i = 0; i < 60; i++) {
            producer.send(new Message(topic, i % 2 == 0 ? "even" : "odd", bytes("" + i)), (queues, m, order) -> queues.get((Integer) order), i % 4);
        }
        Queue<Integer> seen = new ConcurrentLinkedQueue<>();
        DefaultMQPushConsumer consumer = consumer(topic, "odd");
        consumer.registerMessageListener((MessageListenerOrderly) (batch, context) -> {
            batch.forEach(m -> seen.add(Integer.parseInt(text(m))));
            return ConsumeOrderlyStatus.SUCCESS;
        });
        consumer.start();
        Until.holds(LATER, () -> "30 messages, but " + seen.size(), () -> seen.size() >= 30);
        for (int queue : new int[] {1, 3}) {
            List<Integer> expected = IntStream.range(0, 60).filter(i -> i % 4 == queue).boxed().toList();
            assertEquals(expected, seen.stream().filter(i -> i % 4 == queue).toList());
        }
        assertEquals(30, seen.size());
    }

    @Test
    void retry() throws Exception {
        DefaultMQProducer producer = producer();
        String topic = unique("topic");
        send(producer, topic, List.of("again"));
        Queue<Integer> seen = new ConcurrentLinkedQueue<>();
        DefaultMQPushConsumer consumer = consumer(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            seen.add(batch.get(0).getReconsumeTimes());
            context.setDelayLevelWhenNextConsume(1);
            return seen.size() == 1 ? ConsumeConcurrentlyStatus.RECONSUME_LATER : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        Until.holds(LATER, () -> "a second delivery: " + seen, () -> seen.size() >= 2);
        // A client that waits five seconds for an answer sends it back twice.
        assertEquals(List.of(0, 1), seen.stream().distinct().collect(Collectors.toList()));
    }

    @Test
    void litePull() throws Exception {
        DefaultMQProducer producer = producer();
        String topic = unique("topic");
        List<String> bodies = bodies("lite", 30);
        send(producer, topic, bodies);
        DefaultLitePullConsumer consumer = new DefaultLitePullConsumer(unique("group"));
        settle(consumer);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "*");
        consumer.start();
        closers.push(consumer::shutdown);
        List<String> seen = new ArrayList<>();
        Until.holds(LATER, () -> "30 messages, but " + seen.size(), () -> {
            consumer.poll(100).forEach(m -> seen.add(text(m)));
            return seen.size() >= 30;
        });
        assertEquals(bodies.stream().sorted().toList(), seen.stream().sorted().toList());
    }

    private DefaultMQProducer producer() throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer(unique("producers"));
        settle(producer);
        producer.setSendMsgTimeout(15_000);
        producer.start();
        closers.push(producer::shutdown);
        return producer;
    }

    private DefaultMQPushConsumer consumer(String topic, String tags) throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(unique("group"));
        settle(consumer);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, tags);
        closers.push(consumer::shutdown);
        return consumer;
    }

    private void settle(ClientConfig client) {
        client.setNamesrvAddr(node.namesrv());
        client.setInstanceName(unique("instance"));
        client.setHeartbeatBrokerInterval(TIMER_MS);
        client.setPollNameServerInterval(TIMER_MS);
        client.setMqClientApiTimeout(API_TIMEOUT_MS);
    }

    private List<MessageExt> read(String topic) throws Exception {
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer(unique("readers"));
        settle(consumer);
        consumer.start();
        closers.push(consumer::shutdown);
        List<MessageExt> all = new ArrayList<>();
        Set<MessageQueue> queues = consumer.fetchSubscribeMessageQueues(topic);
        assertEquals(4, queues.size(), "as many as the producer asks for");
        for (MessageQueue queue : queues.stream().sorted().collect(Collectors.toList())) {
            for (long next = 0; next < consumer.maxOffset(queue);) {
                PullResult result = consumer.pull(queue, "*", next, 32);
                assertEquals(PullStatus.FOUND, result.getPullStatus());
                all.addAll(result.getMsgFoundList());
                next = result.getNextBeginOffset();
            }
        }
        return all;
    }

    private static void send(DefaultMQProducer producer, String topic, List<String> bodies) throws Exception {
        for (String body : bodies) {
            assertEquals(SendStatus.SEND_OK, producer.send(new Message(topic, bytes(body))).getSendStatus());
        }
    }

    private static List<String> bodies(String prefix, int count) {
        return IntStream.range(0, count).mapToObj(i -> prefix + "-" + i).toList();
    }

    private static String unique(String what) {
        return what + "-49-" + RUN + "-" + NEXT.incrementAndGet();
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static String text(Message message) {
        return new String(message.getBody(), StandardCharsets.UTF_8);
    }
}
