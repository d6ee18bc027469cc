package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.store.OffsetStore;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.protocol.subscription.SubscriptionGroupConfig;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import ringmq.rig.Node;
import ringmq.rig.Rig;
import ringmq.rig.Until;

/** What a server knew before it ended, gently or not, it knows when it is back; clients that were there go on. */
class RestartTest {
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
    void afterSigterm() throws Exception {
        String topic = clients.topic(3);
        String group = Clients.unique("group");
        SubscriptionGroupConfig settings = new SubscriptionGroupConfig();
        settings.setGroupName(group);
        settings.setRetryMaxTimes(7);
        clients.admin().createAndUpdateSubscriptionGroupConfig(node.broker(), settings);
        List<String> before = Clients.bodies("before", 60);
        clients.send(clients.producer(), topic, before);
        consume(group, topic, before);

        node.stop();
        node.start();

        try (Clients fresh = new Clients(node.namesrv())) {
            fresh.awaitRoute(topic, 3);
            assertEquals(before.stream().sorted().toList(), Clients.texts(fresh.read(topic)).stream().sorted().toList());
            assertEquals(7, fresh.admin().examineSubscriptionGroupConfig(node.broker(), group).getRetryMaxTimes());
            List<String> after = Clients.bodies("after", 30);
            fresh.send(fresh.producer(), topic, after);
            Inbox inbox = fresh.inbox(group, topic);
            inbox.awaitExactly(after);
        }
    }

    @Test
    void afterSigkill() throws Exception {
        String topic = clients.topic(3);
        String group = clients.group();
        List<String> bodies = Clients.bodies("before", 60);
        Map<String, String> places = new HashMap<>();
        List<SendResult> results = clients.send(clients.producer(), topic, bodies);
        for (int i = 0; i < bodies.size(); i++) {
            places.put(bodies.get(i), results.get(i).getMessageQueue().getQueueId() + "@" + results.get(i).getQueueOffset());
        }
        DefaultMQPullConsumer consumer = clients.pull(group);
        MessageQueue queue = consumer.fetchSubscribeMessageQueues(topic).iterator().next();
        OffsetStore offsets = consumer.getDefaultMQPullConsumerImpl().getOffsetStore();
        Until.holds(Clients.SOON, "the offset is taken", () -> {
            offsets.updateConsumeOffsetToBroker(queue, 5, false);
            return true;
        });

        node.kill();
        node.start();

        try (Clients fresh = new Clients(node.namesrv())) {
            fresh.awaitRoute(topic, 3);
            Map<String, String> found = new HashMap<>();
            fresh.read(topic).forEach(m -> found.put(Clients.text(m), m.getQueueId() + "@" + m.getQueueOffset()));
            assertEquals(places, found, "every acknowledged message where it was said to be");
            // A commit of the last moment may be lost, but never becomes another one.
            long offset = fresh.pull(group).fetchConsumeOffset(queue, true);
            assertTrue(offset == 5 || offset == -1 || offset == 0, "offset " + offset);
            SendResult next = fresh.producer().send(new Message(topic, Clients.bytes("next")), queue);
            assertEquals(20, next.getQueueOffset(), "no offset is given twice");
        }
    }

    @Test
    void clientsGoOn() throws Exception {
        String topic = clients.topic(2);
        Inbox inbox = clients.inbox(Clients.unique("group"), topic);
        DefaultMQProducer producer = clients.producer(settings -> settings.setSendMsgTimeout(3_000));
        Queue<String> acknowledged = new ConcurrentLinkedQueue<>();
        AtomicBoolean enough = new AtomicBoolean();
        Thread sender = new Thread(() -> {
            for (int i = 0; !enough.get(); i++) {
                try {
                    if (producer.send(new Message(topic, Clients.bytes("m-" + i))).getSendStatus() == SendStatus.SEND_OK) {
                        acknowledged.add("m-" + i);
                    }
                } catch (Exception whileItIsAway) {
                    Until.pause();
                }
            }
        });
        sender.start();
        Until.holds(Clients.LATER, "some messages", () -> acknowledged.size() > 20);
        node.kill();
        int atKill = acknowledged.size();
        node.start();
        Until.holds(Clients.LATER, "the same producer sends again", () -> acknowledged.size() > atKill + 20);
        enough.set(true);
        sender.join();
        inbox.awaitAll(Clients.LATER, new ArrayList<>(acknowledged));
    }

    /** Consumes these messages with a push consumer whose shutdown commits its offsets. */
    private void consume(String group, String topic, List<String> bodies) throws Exception {
        Inbox inbox = new Inbox();
        DefaultMQPushConsumer consumer = clients.push(group, topic, "*");
        consumer.registerMessageListener(inbox);
        consumer.start();
        inbox.awaitExactly(bodies);
        consumer.shutdown();
        // The commits at its shutdown are not answered: wait until they have arrived.
        clients.awaitCommitted(group, topic);
    }
}
