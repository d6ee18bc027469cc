package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.consumer.store.OffsetStore;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.protocol.ResponseCode;
import org.junit.jupiter.api.Test;
import ringmq.rig.Rig;
import ringmq.rig.Until;

/** The pull consumer, and the lite pull consumer with subscribe and with assign. */
class PullTest extends SharedServer {
    @Test
    void pull() throws Exception {
        String topic = clients.topic(1);
        DefaultMQProducer producer = clients.producer();
        DefaultMQPullConsumer consumer = clients.pull(Clients.unique("group"));
        MessageQueue queue = consumer.fetchSubscribeMessageQueues(topic).iterator().next();

        PullResult empty = consumer.pull(queue, "*", 0, 10);
        assertEquals(PullStatus.NO_NEW_MSG, empty.getPullStatus());
        assertEquals(0, empty.getMaxOffset());

        clients.send(producer, topic, Clients.bodies("p", 100));
        PullResult ten = consumer.pull(queue, "*", 5, 10);
        assertEquals(PullStatus.FOUND, ten.getPullStatus());
        assertEquals(Clients.bodies("p", 15).subList(5, 15), Clients.texts(ten.getMsgFoundList()));
        assertEquals(15, ten.getNextBeginOffset());
        assertEquals(0, ten.getMinOffset());
        assertEquals(100, ten.getMaxOffset());

        PullResult most = consumer.pull(queue, "*", 0, 1000);
        assertEquals(32, most.getMsgFoundList().size(), "a broker gives 32 at once");

        PullResult end = consumer.pull(queue, "*", 100, 10);
        assertEquals(PullStatus.NO_NEW_MSG, end.getPullStatus());
        assertEquals(100, end.getNextBeginOffset());

        PullResult beyond = consumer.pull(queue, "*", 1000, 10);
        assertEquals(PullStatus.OFFSET_ILLEGAL, beyond.getPullStatus());
        assertEquals(100, beyond.getNextBeginOffset());

        PullResult unmatched = consumer.pull(queue, "no-such-tag", 0, 10);
        assertEquals(PullStatus.NO_MATCHED_MSG, unmatched.getPullStatus());
        assertTrue(unmatched.getNextBeginOffset() > 0, "it goes on behind what was looked at");
    }

    @Test
    void pullWithTags() throws Exception {
        String topic = clients.topic(1);
        DefaultMQProducer producer = clients.producer();
        for (int i = 0; i < 40; i++) {
            producer.send(new Message(topic, i % 4 == 0 ? "rare" : "often", Clients.bytes("t-" + i)));
        }
        DefaultMQPullConsumer consumer = clients.pull(Clients.unique("group"));
        MessageQueue queue = consumer.fetchSubscribeMessageQueues(topic).iterator().next();
        PullResult result = consumer.pull(queue, "rare", 0, 32);
        assertEquals(PullStatus.FOUND, result.getPullStatus());
        assertEquals(List.of("t-0", "t-4", "t-8", "t-12", "t-16", "t-20", "t-24", "t-28", "t-32", "t-36"),
            Clients.texts(result.getMsgFoundList()));
        assertEquals(40, result.getNextBeginOffset());
    }

    @Test
    void pullOfACompactedTopic() throws Exception {
        String topic = Clients.unique("compacted");
        TopicConfig config = new TopicConfig(topic, 1, 1);
        config.getAttributes().put("+cleanup.policy", "COMPACTION");
        Properties soon = new Properties();
        soon.setProperty("compactionScheduleInternal", "1000");
        for (String broker : clients.brokers()) {
            clients.admin().updateBrokerConfig(broker, soon);
            clients.admin().createAndUpdateTopicConfig(broker, config);
        }
        clients.awaitRoute(topic, clients.brokers().size());
        DefaultMQProducer producer = clients.producer();
        MessageQueue queue = clients.queues(topic).iterator().next();
        for (int i = 0; i < 10; i++) {
            producer.send(new Message(topic, "tag", "key-" + i % 3, Clients.bytes("c-" + i)), queue);
        }
        MQBrokerException refused = assertThrows(MQBrokerException.class,
            () -> producer.send(new Message(topic, Clients.bytes("no key")), queue));
        assertEquals(ResponseCode.MESSAGE_ILLEGAL, refused.getResponseCode());

        assumeTrue(Rig.kind() == Rig.Kind.RINGMQ, "a stock broker compacts a file when it is full");
        DefaultMQPullConsumer consumer = clients.pull(Clients.unique("group"));
        List<String> newest = List.of("c-7", "c-8", "c-9");
        Until.holds(Clients.SOON, "the newest of each key are left", () -> {
            PullResult result = consumer.pull(queue, "*", 0, 32);
            return result.getPullStatus() == PullStatus.FOUND && Clients.texts(result.getMsgFoundList()).equals(newest);
        });
        assertEquals(7, consumer.minOffset(queue));
        assertEquals(10, consumer.maxOffset(queue));
        // A group that begins at the first message has just those.
        clients.inbox(Clients.unique("group"), topic).awaitExactly(newest);
    }

    @Test
    void pullThatWaits() throws Exception {
        String topic = clients.topic(1);
        DefaultMQPullConsumer consumer = clients.pull(Clients.unique("group"));
        MessageQueue queue = consumer.fetchSubscribeMessageQueues(topic).iterator().next();
        CompletableFuture<PullResult> waiting = CompletableFuture.supplyAsync(() -> {
            try {
                return consumer.pullBlockIfNotFound(queue, "*", 0, 10);
            } catch (Exception e) {
                throw new IllegalStateException(e);
            }
        });
        clients.send(clients.producer(), topic, List.of("woken"));
        PullResult result = waiting.get(Clients.SOON.toSeconds(), TimeUnit.SECONDS);
        assertEquals(PullStatus.FOUND, result.getPullStatus());
        assertEquals(List.of("woken"), Clients.texts(result.getMsgFoundList()));
    }

    @Test
    void offsetsOfAGroup() throws Exception {
        String topic = clients.topic(1);
        clients.send(clients.producer(), topic, Clients.bodies("o", 20));
        String group = clients.group();
        DefaultMQPullConsumer consumer = clients.pull(group);
        MessageQueue queue = consumer.fetchSubscribeMessageQueues(topic).iterator().next();
        OffsetStore offsets = consumer.getDefaultMQPullConsumerImpl().getOffsetStore();
        DefaultMQPullConsumer other = clients.pull(group);
        // An offset may go back, as in RocketMQ. (A client waits five seconds for each answer.)
        for (long offset : new long[] {12, 3}) {
            Until.holds(Clients.SOON, "another consumer of the group sees " + offset, () -> {
                offsets.updateConsumeOffsetToBroker(queue, offset, false);
                return other.fetchConsumeOffset(queue, true) == offset;
            });
        }
        assertEquals(0, clients.pull(clients.group()).fetchConsumeOffset(queue, true), "a new group begins at a young queue's first message");
    }

    @Test
    void litePullWithSubscribe() throws Exception {
        String topic = clients.topic(4);
        List<String> bodies = Clients.bodies("s", 100);
        DefaultMQProducer producer = clients.producer();
        clients.send(producer, topic, bodies);
        String group = Clients.unique("group");
        DefaultLitePullConsumer consumer = clients.litePull(group);
        consumer.subscribe(topic, "*");
        consumer.setAutoCommit(false);
        consumer.start();
        List<MessageExt> got = poll(consumer, 100);
        assertEquals(bodies.stream().sorted().toList(), Clients.texts(got).stream().sorted().toList());
        Map<Integer, Long> next = new HashMap<>();
        for (MessageExt message : got) {
            assertEquals(next.getOrDefault(message.getQueueId(), 0L), message.getQueueOffset(), "each queue in its order");
            next.put(message.getQueueId(), message.getQueueOffset() + 1);
        }
        consumer.commit();
        consumer.shutdown();

        List<String> more = Clients.bodies("more", 20);
        clients.send(producer, topic, more);
        DefaultLitePullConsumer successor = clients.litePull(group);
        successor.subscribe(topic, "*");
        successor.start();
        assertEquals(more.stream().sorted().toList(), Clients.texts(poll(successor, 20)).stream().sorted().toList());
    }

    @Test
    void litePullWithTags() throws Exception {
        String topic = clients.topic(2);
        DefaultMQProducer producer = clients.producer();
        for (int i = 0; i < 20; i++) {
            producer.send(new Message(topic, i % 2 == 0 ? "even" : "odd", Clients.bytes("t-" + i)));
        }
        DefaultLitePullConsumer consumer = clients.litePull(Clients.unique("group"));
        consumer.subscribe(topic, "odd");
        consumer.start();
        List<MessageExt> got = poll(consumer, 10);
        assertEquals(10, got.size());
        got.forEach(message -> assertEquals("odd", message.getTags()));
    }

    @Test
    void litePullWithAssign() throws Exception {
        String topic = clients.topic(2);
        List<MessageQueue> queues = clients.queues(topic).stream().sorted().toList();
        DefaultMQProducer producer = clients.producer();
        for (int i = 0; i < 30; i++) {
            producer.send(new Message(topic, Clients.bytes("a-" + i)), queues.get(0));
            producer.send(new Message(topic, Clients.bytes("other-" + i)), queues.get(1));
        }
        DefaultLitePullConsumer consumer = clients.litePull(Clients.unique("group"));
        consumer.setAutoCommit(false);
        consumer.start();
        MessageQueue queue = consumer.fetchMessageQueues(topic).stream().sorted().findFirst().orElseThrow();
        consumer.assign(Set.of(queue));
        assertEquals(Clients.bodies("a", 30), Clients.texts(poll(consumer, 30)), "of the assigned queue only");

        // Each seek comes when all has been polled: the client keeps what a pull under way during a seek brings.
        consumer.seekToBegin(queue);
        assertEquals(Clients.bodies("a", 30), Clients.texts(poll(consumer, 30)));

        consumer.seek(queue, 20);
        assertEquals(Clients.bodies("a", 30).subList(20, 30), Clients.texts(poll(consumer, 10)));
        consumer.commit();
        assertEquals(30, consumer.committed(queue));

        consumer.seekToEnd(queue);
        producer.send(new Message(topic, Clients.bytes("newest")), queue);
        assertEquals(List.of("newest"), Clients.texts(poll(consumer, 1)));

        consumer.pause(Set.of(queue));
        consumer.seek(queue, 25);
        assertEquals(List.of(), consumer.poll(300));
        consumer.resume(Set.of(queue));
        assertEquals(List.of("a-25", "a-26", "a-27", "a-28", "a-29", "newest"), Clients.texts(poll(consumer, 6)));
    }

    /** Polls until so many messages have come. */
    private static List<MessageExt> poll(DefaultLitePullConsumer consumer, int count) {
        List<MessageExt> got = new ArrayList<>();
        Until.holds(Clients.SOON, () -> count + " messages, but there were " + got.size(), () -> {
            got.addAll(consumer.poll(100));
            return got.size() >= count;
        });
        return got;
    }
}
