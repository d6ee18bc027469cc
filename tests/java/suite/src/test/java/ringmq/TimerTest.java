package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.junit.jupiter.api.Test;

/** Messages with a time of their own come when it has come; those that are recalled do not. */
class TimerTest extends SharedServer {
    private static final int MESSAGE_ILLEGAL = 13;
    /** How late a message may be where other tests run beside this one. */
    private static final long LATE_MS = 5_000;

    @Test
    void comeInTime() throws Exception {
        String topic = clients.topic(4);
        Inbox inbox = clients.inbox(Clients.unique("group"), topic);
        DefaultMQProducer producer = clients.producer();
        List<String> bodies = new ArrayList<>();
        for (int i = 0; i < 60; i++) {
            long delayMs = 1_000 + i * 37L % 3_000;
            long dueMs = System.currentTimeMillis() + delayMs;
            Message message = new Message(topic, Clients.bytes("timer-" + i));
            switch (i % 3) {
                case 0 -> message.setDelayTimeMs(delayMs);
                case 1 -> message.setDeliverTimeMs(dueMs);
                default -> message.setDelayTimeSec(2);
            }
            message.putUserProperty("due", "" + (i % 3 == 2 ? dueMs - delayMs + 2_000 : dueMs));
            SendResult result = producer.send(message);
            assertNotNull(result.getRecallHandle());
            bodies.add("timer-" + i);
        }
        inbox.awaitExactly(bodies);
        for (MessageExt message : inbox.messages()) {
            long lateMs = message.getStoreTimestamp() - Long.parseLong(message.getUserProperty("due"));
            assertTrue(lateMs >= 0 && lateMs < LATE_MS, lateMs + " ms late: " + message);
            assertEquals(topic, message.getTopic());
        }
    }

    @Test
    void recalledOnesDoNotCome() throws Exception {
        String topic = clients.topic(4);
        Inbox inbox = clients.inbox(Clients.unique("group"), topic);
        DefaultMQProducer producer = clients.producer();
        long dueMs = System.currentTimeMillis() + 5_000;
        List<String> left = new ArrayList<>();
        List<String> handles = new ArrayList<>();
        for (int i = 0; i < 20; i++) {
            Message message = new Message(topic, Clients.bytes("timer-" + i));
            message.setDeliverTimeMs(dueMs);
            SendResult result = producer.send(message);
            if (i % 2 == 0) {
                assertEquals(result.getMsgId(), producer.recallMessage(topic, result.getRecallHandle()));
                handles.add(result.getRecallHandle());
            } else {
                left.add("timer-" + i);
            }
        }
        // Who lost the answer may ask again, as of a stock broker.
        assertNotNull(producer.recallMessage(topic, handles.get(0)));
        // One that is due a second later shows that the others would have come.
        Message last = new Message(topic, Clients.bytes("last"));
        last.setDeliverTimeMs(dueMs + 1_000);
        producer.send(last);
        left.add("last");
        inbox.awaitExactly(left);
    }

    @Test
    void tooFarIsRefused() throws Exception {
        String topic = clients.topic(1);
        Message message = new Message(topic, Clients.bytes("x"));
        message.setDelayTimeSec(8 * 86_400);
        MQBrokerException far = assertThrows(MQBrokerException.class, () -> clients.producer().send(message));
        assertEquals(MESSAGE_ILLEGAL, far.getResponseCode());
    }
}
