package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.function.IntPredicate;
import java.util.stream.IntStream;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageSelector;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.junit.jupiter.api.Test;
import ringmq.rig.Until;

/** Filters by SQL92, as push, lite pull and pull consumers use them. */
class FilterTest extends SharedServer {
    private static final int COUNT = 60;

    /** Messages number, number-1, ...: age is the number, kind one of three, every fifth has a note. */
    private String filled() throws Exception {
        String topic = clients.topic(1);
        DefaultMQProducer producer = clients.producer();
        for (int i = 0; i < COUNT; i++) {
            Message message = new Message(topic, "tag" + i % 2, Clients.bytes("m-" + i));
            message.putUserProperty("age", Integer.toString(i));
            message.putUserProperty("kind", List.of("red", "green", "blue").get(i % 3));
            if (i % 5 == 0) {
                message.putUserProperty("note", "it's " + i);
            }
            producer.send(message);
        }
        return topic;
    }

    private static List<String> those(IntPredicate wanted) {
        return IntStream.range(0, COUNT).filter(wanted).mapToObj(i -> "m-" + i).toList();
    }

    @Test
    void push() throws Exception {
        String topic = filled();
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = clients.push(Clients.unique("group"), topic, "*");
        consumer.subscribe(topic, MessageSelector.bySql(
            "(age BETWEEN 10 AND 19 OR age >= 55) AND kind IN ('red', 'blue') AND TAGS = 'tag1'"));
        consumer.registerMessageListener(inbox);
        consumer.start();
        inbox.awaitExactly(those(i -> (i >= 10 && i <= 19 || i >= 55) && i % 3 != 1 && i % 2 == 1));
        // It waits at the queue's end now: what it does not want does not come, what it wants does.
        DefaultMQProducer producer = clients.producer();
        for (String age : List.of("5", "100", "none")) {
            Message message = new Message(topic, "tag1", Clients.bytes("late-" + age));
            message.putUserProperty("age", age);
            message.putUserProperty("kind", "red");
            producer.send(message);
        }
        inbox.awaitAll(Clients.SOON, List.of("late-100"));
        assertTrue(inbox.texts().stream().noneMatch(text -> text.equals("late-5") || text.equals("late-none")));
    }

    @Test
    void litePull() throws Exception {
        String topic = filled();
        DefaultLitePullConsumer consumer = clients.litePull(Clients.unique("group"));
        consumer.subscribe(topic, MessageSelector.bySql("note IS NOT NULL AND note CONTAINS 'it''s 1' AND NOT (kind = 'red')"));
        consumer.start();
        List<String> wanted = those(i -> i % 5 == 0 && Integer.toString(i).startsWith("1") && i % 3 != 0);
        List<MessageExt> got = new ArrayList<>();
        Until.holds(Clients.SOON, () -> wanted + ", but there is " + Clients.texts(got), () -> {
            got.addAll(consumer.poll(100));
            return got.size() >= wanted.size();
        });
        assertEquals(wanted, Clients.texts(got));
    }

    @Test
    void pull() throws Exception {
        String topic = filled();
        DefaultMQPullConsumer consumer = clients.pull(Clients.unique("group"));
        MessageQueue queue = consumer.fetchSubscribeMessageQueues(topic).iterator().next();
        // The client refuses until a heartbeat told it the broker's version.
        Until.holds(Duration.ofSeconds(60), "the client knows the broker's version",
            () -> consumer.pull(queue, MessageSelector.bySql("age IS NULL"), 0, 1) != null);
        PullResult some = consumer.pull(queue, MessageSelector.bySql("kind NOT STARTSWITH 'r' AND age < 10"), 0, 32);
        assertEquals(PullStatus.FOUND, some.getPullStatus());
        assertEquals(those(i -> i % 3 != 0 && i < 10), Clients.texts(some.getMsgFoundList()));
        assertEquals(COUNT, some.getNextBeginOffset());
        PullResult none = consumer.pull(queue, MessageSelector.bySql("age > 5 AND nothing = 'x'"), 0, 32);
        assertEquals(PullStatus.NO_MATCHED_MSG, none.getPullStatus());
        assertEquals(COUNT, none.getNextBeginOffset());
    }

    @Test
    void wrong() throws Exception {
        String topic = clients.topic(1);
        DefaultMQPushConsumer consumer = clients.push(Clients.unique("group"), topic, "*");
        consumer.subscribe(topic, MessageSelector.bySql("age > 5 AND"));
        consumer.registerMessageListener(new Inbox());
        MQClientException refused = assertThrows(MQClientException.class, consumer::start);
        assertTrue(refused.toString().contains("23"), refused.toString());
    }
}
