package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.Collectors;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.protocol.route.BrokerData;
import org.apache.rocketmq.remoting.protocol.route.TopicRouteData;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import ringmq.rig.Node;
import ringmq.rig.Rig;
import ringmq.rig.Until;

/** Three brokers of one cluster, each its own name, and two NameServers. */
class ClusterTest {
    private static final String CLUSTER = "three";
    private static final List<String> NAMES = List.of("broker-1", "broker-2", "broker-3");
    private static final int QUEUES = 4;

    private static final List<Node> NAMESRVS = new ArrayList<>();
    private static final List<Node> BROKERS = new ArrayList<>();
    private Clients clients;

    @BeforeAll
    static void start() {
        NAMESRVS.add(Rig.namesrv(Rig.kind()));
        NAMESRVS.add(Rig.namesrv(Rig.kind()));
        for (String name : NAMES) {
            BROKERS.add(Rig.broker(Rig.kind(), CLUSTER, name, NAMESRVS.get(0).namesrv(), NAMESRVS.get(1).namesrv()));
        }
        awaitCluster(NAMESRVS.get(0), 3);
        awaitCluster(NAMESRVS.get(1), 3);
    }

    @AfterAll
    static void stop() {
        BROKERS.forEach(Node::close);
        NAMESRVS.forEach(Node::close);
    }

    @BeforeEach
    void open() {
        clients = new Clients(NAMESRVS.get(0).namesrv() + ";" + NAMESRVS.get(1).namesrv());
    }

    @AfterEach
    void close() {
        clients.close();
    }

    @Test
    void routesMerge() throws Exception {
        String topic = clients.topic(QUEUES);
        Map<String, String> addresses = new TreeMap<>();
        for (int i = 0; i < 3; i++) {
            addresses.put(NAMES.get(i), BROKERS.get(i).broker());
        }
        for (Node namesrv : NAMESRVS) {
            try (Clients one = new Clients(namesrv.namesrv())) {
                one.awaitRoute(topic, 3 * QUEUES);
                TopicRouteData route = one.admin().examineTopicRouteInfo(topic);
                assertEquals(addresses, route.getBrokerDatas().stream().collect(Collectors.toMap(BrokerData::getBrokerName,
                    b -> b.getBrokerAddrs().get(0L), (a, b) -> a, TreeMap::new)));
                route.getBrokerDatas().forEach(b -> assertEquals(CLUSTER, b.getCluster()));
                assertEquals(Map.of(CLUSTER, Set.copyOf(NAMES)), one.admin().examineBrokerClusterInfo().getClusterAddrTable());
                String list = Capture.mqadmin("clusterList", "-n", namesrv.namesrv());
                BROKERS.forEach(b -> assertTrue(list.contains(b.broker()), list));
            }
        }
    }

    @Test
    void loadSpreads() throws Exception {
        String topic = topic();
        List<String> bodies = Clients.bodies("spread", 10 * 3 * QUEUES);
        Map<MessageQueue, Integer> sent = new HashMap<>();
        for (SendResult result : clients.send(clients.producer(), topic, bodies)) {
            sent.merge(result.getMessageQueue(), 1, Integer::sum);
        }
        assertEquals(3 * QUEUES, sent.size());
        sent.forEach((queue, count) -> assertEquals(10, count, queue.toString()));
        String group = Clients.unique("group");
        Inbox one = clients.inbox(group, topic);
        Inbox two = clients.inbox(group, topic);
        Until.holds(Clients.LATER, "each message, by one of the two", () -> one.messages().size() + two.messages().size() >= bodies.size());
        Set<String> all = new HashSet<>(one.texts());
        all.addAll(two.texts());
        assertEquals(Set.copyOf(bodies), all);
    }

    @Test
    void killedBroker() throws Exception {
        String topic = topic();
        Inbox inbox = clients.inbox(Clients.unique("group"), topic);
        DefaultMQProducer producer = clients.producer(settings -> settings.setRetryTimesWhenSendFailed(10));
        List<String> acknowledged = new ArrayList<>(Clients.bodies("before", 60));
        clients.send(producer, topic, acknowledged);
        inbox.awaitExactly(acknowledged);

        Node killed = BROKERS.get(1);
        killed.kill();
        try {
            // The same clients go on at once: a send that meets the dead broker is repeated at another by the client.
            Set<String> used = new HashSet<>();
            for (String body : Clients.bodies("without", 60)) {
                SendResult result = producer.send(new Message(topic, Clients.bytes(body)));
                assertEquals(SendStatus.SEND_OK, result.getSendStatus());
                used.add(result.getMessageQueue().getBrokerName());
                acknowledged.add(body);
            }
            assertEquals(Set.of("broker-1", "broker-3"), used);
            inbox.awaitExactly(acknowledged);
            // Both NameServers see the broken connection, long before the heartbeat's 120 s.
            for (Node namesrv : NAMESRVS) {
                awaitCluster(namesrv, 2);
                try (Clients one = new Clients(namesrv.namesrv())) {
                    one.awaitRoute(topic, 2 * QUEUES);
                }
            }
        } finally {
            killed.start();
        }
        clients.awaitRoute(topic, 3 * QUEUES);
        Until.holds(Clients.LATER, "the same producer uses it again", () -> {
            String body = Clients.unique("again");
            SendResult result = producer.send(new Message(topic, Clients.bytes(body)));
            acknowledged.add(body);
            return result.getMessageQueue().getBrokerName().equals("broker-2");
        });
        inbox.awaitAll(Clients.LATER, acknowledged);
        assertEquals(acknowledged.stream().sorted().toList(), Clients.texts(clients.read(topic)).stream().sorted().toList(),
            "each acknowledged message is stored once");
    }

    @Test
    void killedNamesrv() throws Exception {
        String topic = topic();
        Inbox inbox = clients.inbox(Clients.unique("group"), topic);
        DefaultMQProducer producer = clients.producer();
        List<String> bodies = new ArrayList<>(Clients.bodies("before", 30));
        clients.send(producer, topic, bodies);
        inbox.awaitExactly(bodies);

        Node killed = NAMESRVS.get(0);
        killed.kill();
        String made;
        try {
            List<String> without = Clients.bodies("without", 30);
            clients.send(producer, topic, without);
            bodies.addAll(without);
            inbox.awaitExactly(bodies);
            // A client that was talking to the dead one finds the other at its next look, some seconds later: then a new topic
            // can be made and used. (Until then it throws: this client asks no second NameServer by itself.)
            Until.holds(Clients.SOON, "the tools have turned to the other", () -> clients.brokers().size() == 3);
            made = clients.topic(QUEUES);
            Until.holds(Clients.SOON, "the producer has, too", () -> producer.fetchPublishMessageQueues(made).size() == 3 * QUEUES);
            clients.send(producer, made, without);
            clients.awaitCount(made, without.size());
        } finally {
            killed.start();
        }
        awaitCluster(killed, 3);
        try (Clients one = new Clients(killed.namesrv())) {
            one.awaitRoute(made, 3 * QUEUES);
        }
    }

    /** A topic that both NameServers know everywhere: a client may ask either. */
    private String topic() throws Exception {
        String topic = clients.topic(QUEUES);
        for (Node namesrv : NAMESRVS) {
            try (Clients one = new Clients(namesrv.namesrv())) {
                one.awaitRoute(topic, 3 * QUEUES);
            }
        }
        return topic;
    }

    /** Waits until this NameServer, asked alone, knows so many brokers of the cluster. */
    private static void awaitCluster(Node namesrv, int brokers) {
        try (Clients one = new Clients(namesrv.namesrv())) {
            Until.holds(Clients.LATER, namesrv.namesrv() + " knows " + brokers + " brokers", () -> one.brokers().size() == brokers);
        }
    }
}
