package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;
import org.apache.rocketmq.client.QueryResult;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageConst;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.junit.jupiter.api.Test;
import ringmq.rig.Until;

/** Finding messages: by key, by tag, by unique key, by id, by time; and the ends of a queue. */
class QueryTest extends SharedServer {
    @Test
    void byKey() throws Exception {
        String topic = clients.topic(4);
        String elsewhere = clients.topic(1);
        DefaultMQProducer producer = clients.producer();
        for (int i = 0; i < 12; i++) {
            producer.send(new Message(topic, "t", "shared 键" + i % 4 + " own" + i, Clients.bytes("k-" + i)));
            producer.send(new Message(elsewhere, "t", "shared own" + i, Clients.bytes("elsewhere-" + i)));
        }
        assertEquals(List.of("k-1", "k-5", "k-9"), query(topic, "键1", 32, 3));
        assertEquals(List.of("k-7"), query(topic, "own7", 32, 1));
        assertEquals(12, query(topic, "shared", 32, 12).size());
        assertEquals(5, query(topic, "shared", 5, 5).size(), "no more than asked for");
        assertThrows(MQClientException.class, () -> clients.admin().queryMessage(topic, "no-such-key", 32, 0, Long.MAX_VALUE));
        long before = clients.read(topic).stream().mapToLong(MessageExt::getStoreTimestamp).min().orElseThrow() - 60_000;
        assertThrows(MQClientException.class, () -> clients.admin().queryMessage(topic, "shared", 32, 0, before), "nothing is that old");
    }

    @Test
    void byTag() throws Exception {
        String topic = clients.topic(4);
        String elsewhere = clients.topic(1);
        DefaultMQProducer producer = clients.producer();
        for (int i = 0; i < 12; i++) {
            // A tag is no key, and a key no tag.
            producer.send(new Message(topic, List.of("red", "two words", "蓝").get(i % 3), "red-key", Clients.bytes("t-" + i)));
            producer.send(new Message(elsewhere, "red", Clients.bytes("elsewhere-" + i)));
        }
        producer.send(new Message(topic, "other", "red", Clients.bytes("key")));
        for (String tag : List.of("red", "two words", "蓝")) {
            int first = List.of("red", "two words", "蓝").indexOf(tag);
            List<String> wanted = IntStream.range(0, 4).mapToObj(i -> "t-" + (first + 3 * i)).sorted().toList();
            assertEquals(wanted, query(topic, tag, MessageConst.INDEX_TAG_TYPE, 32, 4));
        }
        assertEquals(2, query(topic, "red", MessageConst.INDEX_TAG_TYPE, 2, 2).size(), "no more than asked for");
        assertEquals(List.of("key"), query(topic, "red", 32, 1));
        assertThrows(MQClientException.class, () -> clients.admin().queryMessage(null, topic, "red-key", 32, 0, Long.MAX_VALUE,
            MessageConst.INDEX_TAG_TYPE, null));
    }

    @Test
    void byUniqueKey() throws Exception {
        String topic = clients.topic(4);
        List<SendResult> results = clients.send(clients.producer(), topic, Clients.bodies("u", 10));
        for (int i = 0; i < 10; i++) {
            SendResult result = results.get(i);
            String body = "u-" + i;
            Until.holds(Clients.SOON, body + " is found by its unique key", () -> {
                MessageExt found = clients.admin().viewMessage(topic, result.getMsgId());
                return Clients.text(found).equals(body) && found.getQueueOffset() == result.getQueueOffset();
            });
        }
    }

    @Test
    void byId() throws Exception {
        String topic = clients.topic(2);
        List<SendResult> results = clients.send(clients.producer(), topic, Clients.bodies("i", 10));
        for (int i = 0; i < 10; i++) {
            MessageExt found = clients.view(topic, results.get(i).getOffsetMsgId());
            assertEquals("i-" + i, Clients.text(found));
            assertEquals(topic, found.getTopic());
            assertEquals(results.get(i).getQueueOffset(), found.getQueueOffset());
            assertEquals(results.get(i).getMessageQueue().getQueueId(), found.getQueueId());
        }
        // An id that points into the middle of a record, or far behind the log, is nobody's.
        String id = results.get(3).getOffsetMsgId();
        long position = Long.parseUnsignedLong(id.substring(16), 16);
        for (long wrong : new long[] {position + 1, position + 7, position + (1L << 40)}) {
            String wrongId = id.substring(0, 16) + String.format("%016X", wrong);
            Exception refused = assertThrows(Exception.class, () -> clients.admin().viewMessage(topic, wrongId));
            assertTrue(refused instanceof MQBrokerException || refused instanceof MQClientException, refused.toString());
        }
    }

    @Test
    void byTime() throws Exception {
        String topic = clients.topic(1);
        DefaultMQProducer producer = clients.producer();
        MessageQueue queue = clients.queues(topic).iterator().next();
        long start = System.currentTimeMillis();
        assertEquals(0, clients.admin().minOffset(queue));
        assertEquals(0, clients.admin().maxOffset(queue));
        assertEquals(0, clients.admin().searchOffset(queue, start), "an empty queue");

        List<Long> times = new ArrayList<>();
        for (int i = 0; i < 20; i++) {
            SendResult result = producer.send(new Message(topic, Clients.bytes("time-" + i)));
            long stored = clients.view(topic, result.getOffsetMsgId()).getStoreTimestamp();
            times.add(stored);
            Until.holds(Clients.SOON, "the clock goes on", () -> System.currentTimeMillis() > stored + 1);
        }
        assertEquals(0, clients.admin().minOffset(queue));
        assertEquals(20, clients.admin().maxOffset(queue));
        assertEquals(0, clients.admin().searchOffset(queue, start - 3_600_000), "all are younger");
        assertEquals(20, clients.admin().searchOffset(queue, System.currentTimeMillis() + 3_600_000), "all are older");
        for (int i = 0; i < 20; i++) {
            assertEquals(i, clients.admin().searchOffset(queue, times.get(i)), "stored then");
            assertEquals(i, clients.admin().searchOffset(queue, i == 0 ? start : times.get(i - 1) + 1), "the first not before");
        }
        assertTrue(clients.admin().earliestMsgStoreTime(queue) <= times.get(0));
        assertTrue(clients.admin().earliestMsgStoreTime(queue) > 0);
    }

    /** The bodies found by the key; waits until there are {@code expected}, for the Java broker indexes a little later. */
    private List<String> query(String topic, String key, int max, int expected) {
        return query(topic, key, null, max, expected);
    }

    private List<String> query(String topic, String key, String kind, int max, int expected) {
        List<String> found = new ArrayList<>();
        Until.holds(Clients.SOON, () -> expected + " messages with key " + key + ": " + found, () -> {
            QueryResult result = kind == null ? clients.admin().queryMessage(topic, key, max, 0, Long.MAX_VALUE)
                : clients.admin().queryMessage(null, topic, key, max, 0, Long.MAX_VALUE, kind, null);
            found.clear();
            found.addAll(Clients.texts(result.getMessageList()).stream().sorted().toList());
            return found.size() == expected;
        });
        return found;
    }
}
