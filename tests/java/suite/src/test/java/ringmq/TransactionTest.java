package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Queue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.client.producer.TransactionSendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageConst;
import org.apache.rocketmq.common.message.MessageExt;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import ringmq.rig.Node;
import ringmq.rig.Rig;
import ringmq.rig.Until;

/** Messages of transactions come once they are committed, and only those. */
class TransactionTest {
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

    /** What a body's first word says of its transaction; "later" ones are decided when the broker asks. */
    private static final class Decider implements TransactionListener {
        final Map<String, Integer> asked = new ConcurrentHashMap<>();
        final Queue<MessageExt> questions = new ConcurrentLinkedQueue<>();

        @Override
        public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
            return switch (Clients.text(message).split("-")[0]) {
                case "commit" -> LocalTransactionState.COMMIT_MESSAGE;
                case "rollback" -> LocalTransactionState.ROLLBACK_MESSAGE;
                default -> LocalTransactionState.UNKNOW;
            };
        }

        @Override
        public LocalTransactionState checkLocalTransaction(MessageExt message) {
            questions.add(message);
            asked.merge(Clients.text(message), 1, Integer::sum);
            return switch (Clients.text(message).split("-")[0]) {
                case "later" -> LocalTransactionState.COMMIT_MESSAGE;
                case "never" -> LocalTransactionState.ROLLBACK_MESSAGE;
                default -> LocalTransactionState.UNKNOW;
            };
        }
    }

    private static void send(TransactionMQProducer producer, String topic, String body) throws Exception {
        Message message = new Message(topic, "tag", body, Clients.bytes(body));
        TransactionSendResult result = producer.sendMessageInTransaction(message, null);
        assertEquals(SendStatus.SEND_OK, result.getSendStatus());
        assertEquals(result.getMsgId(), result.getTransactionId());
    }

    @Test
    void onlyCommittedOnesCome() throws Exception {
        String topic = clients.topic(4);
        Inbox inbox = clients.inbox(Clients.unique("group"), topic);
        // Nobody is asked about what he decided while that is on its way to a slow disk.
        Properties patience = new Properties();
        patience.setProperty("transactionTimeOut", "20000");
        clients.admin().updateBrokerConfig(node.broker(), patience);
        Decider decider = new Decider();
        TransactionMQProducer producer = clients.transactions(Clients.unique("transactions"), decider);
        List<String> wanted = new ArrayList<>();
        for (int i = 0; i < 25; i++) {
            for (String kind : List.of("commit", "rollback", "later", "never")) {
                send(producer, topic, kind + "-" + i);
                if (kind.equals("commit") || kind.equals("later")) {
                    wanted.add(kind + "-" + i);
                }
            }
        }
        inbox.awaitAll(Clients.LATER, wanted);
        Until.holds(Clients.LATER, "all that were left open are asked about: " + decider.asked.size(), () -> decider.asked.size() == 50);
        inbox.awaitExactly(wanted);
        assertTrue(decider.asked.keySet().stream().allMatch(body -> body.startsWith("later") || body.startsWith("never")),
            "nobody is asked about what he decided: " + decider.asked);
        MessageExt question = decider.questions.peek();
        assertEquals(topic, question.getTopic());
        assertEquals("1", question.getProperty(MessageConst.PROPERTY_TRANSACTION_CHECK_TIMES));
        for (MessageExt message : inbox.messages()) {
            assertEquals("tag", message.getTags());
            assertEquals("true", message.getProperty(MessageConst.PROPERTY_TRANSACTION_PREPARED), "as a stock broker shows it");
        }
    }

    @Test
    void survivesAKill() throws Exception {
        String topic = clients.topic(4);
        TransactionMQProducer producer = clients.transactions(Clients.unique("transactions"), new Decider());
        List<String> wanted = new ArrayList<>();
        for (int i = 0; i < 20; i++) {
            send(producer, topic, "commit-" + i);
            send(producer, topic, "rollback-" + i);
            send(producer, topic, "later-" + i);
            wanted.add("commit-" + i);
            wanted.add("later-" + i);
        }
        // The ends are not answered: wait until they have come. Where the disk is slow, those that are asked about come too.
        List<String> committed = Clients.bodies("commit", 20);
        Until.holds(Clients.SOON, "what was committed is there", () -> Clients.texts(clients.read(topic)).containsAll(committed));
        node.kill();
        node.start();
        // The same producer goes on, and is asked what it left open.
        try (Clients fresh = new Clients(node.namesrv())) {
            Inbox inbox = fresh.inbox(Clients.unique("group"), topic);
            inbox.awaitAll(Clients.LATER, wanted);
            inbox.awaitExactly(wanted);
        }
    }
}
