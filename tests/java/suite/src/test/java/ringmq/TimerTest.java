package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.List;
import java.util.concurrent.Semaphore;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.junit.jupiter.api.Test;
import ringmq.rig.Until;

/** Messages with a time of their own come when it has come; those that are recalled do not. */
class TimerTest extends SharedServer {
    private static final int MESSAGE_ILLEGAL = 13;
    /** How many wait at once: a million where everything runs, which takes minutes (tests/timers.rs has a million, too). */
    private static final int MANY = "all".equals(System.getProperty("run")) ? 1_000_000 : 20_000;
    private static final int UNDER_WAY = 1_000;
    /** How late a message may be where other tests run beside this one. */
    private static final long LATE_MS = 20_000;

    @Test
    void comeInTime() throws Exception {
        String topic = clients.topic(4);
        Inbox inbox = clients.inbox(Clients.unique("group"), topic);
        DefaultMQProducer producer = clients.producer();
        List<String> bodies = new ArrayList<>();
        for (int i = 0; i < 60; i++) {
            long delayMs = 4_000 + i * 37L % 3_000;
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
        // By then all of them are sent and recalled, whatever a write to the disk takes.
        long dueMs = System.currentTimeMillis() + 40_000;
        List<String> left = new ArrayList<>();
        List<String> handles = new ArrayList<>();
        for (int i = 0; i < 8; i++) {
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
        inbox.awaitAll(Clients.LATER, left);
        inbox.awaitExactly(left);
    }

    @Test
    void manyWaitTogether() throws Exception {
        String topic = clients.topic(4);
        AtomicInteger early = new AtomicInteger();
        BitSet came = new BitSet(MANY);
        DefaultMQPushConsumer consumer = clients.push(Clients.unique("group"), topic, "*");
        consumer.setConsumeMessageBatchMaxSize(32);
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            for (MessageExt message : messages) {
                if (message.getStoreTimestamp() < Long.parseLong(message.getUserProperty("due"))) {
                    early.incrementAndGet();
                }
                synchronized (came) {
                    came.set(Integer.parseInt(new String(message.getBody(), StandardCharsets.UTF_8)));
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        DefaultMQProducer producer = clients.producer();
        Semaphore under = new Semaphore(UNDER_WAY);
        AtomicReference<Throwable> failed = new AtomicReference<>();
        // As long as sending takes, so that all of them wait at once; then they come within ten seconds, in no order.
        long firstMs = System.currentTimeMillis() + 5_000 + MANY / 20;
        for (int i = 0; i < MANY; i++) {
            long dueMs = firstMs + i * 7919L % 10_000;
            Message message = new Message(topic, Clients.bytes("" + i));
            message.setDeliverTimeMs(dueMs);
            message.putUserProperty("due", "" + dueMs);
            under.acquire();
            producer.send(message, new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    under.release();
                }

                @Override
                public void onException(Throwable e) {
                    failed.set(e);
                    under.release();
                }
            });
        }
        under.acquire(UNDER_WAY);
        assertNull(failed.get(), () -> "a send failed: " + failed.get());
        Duration limit = Clients.LATER.plusMillis(5_000 + MANY / 20);
        Until.holds(limit, () -> "all of " + MANY, () -> {
            synchronized (came) {
                return came.cardinality() == MANY;
            }
        });
        assertEquals(0, early.get(), "came before their time");
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
