package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Collectors;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.remoting.protocol.route.QueueData;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import ringmq.rig.Node;
import ringmq.rig.Rig;
import ringmq.rig.Until;

/**
 * One cluster of both kinds: a broker under test and a stock Java one, both registered with a NameServer under test and a
 * stock Java one. What one NameServer says, the other says; clients see no difference.
 */
class InteropTest {
    private static final int QUEUES = 3;

    private static Node ours;
    private static Node stock;
    private static Node ourBroker;
    private static Node stockBroker;

    @BeforeAll
    static void start() {
        ours = Rig.namesrv(Rig.kind());
        stock = Rig.namesrv(Rig.Kind.JAVA);
        ourBroker = Rig.broker(Rig.kind(), "mixed", "broker-ours", ours.namesrv(), stock.namesrv());
        stockBroker = Rig.broker(Rig.Kind.JAVA, "mixed", "broker-stock", ours.namesrv(), stock.namesrv());
    }

    @AfterAll
    static void stop() {
        for (Node node : new Node[] {ourBroker, stockBroker, ours, stock}) {
            if (node != null) {
                node.close();
            }
        }
    }

    @Test
    void ourBrokerAtAJavaNamesrv() throws Exception {
        worksThrough(stock);
    }

    @Test
    void javaBrokerAtOurNamesrv() throws Exception {
        worksThrough(ours);
    }

    @Test
    void bothSayTheSame() throws Exception {
        try (Clients one = new Clients(ours.namesrv()); Clients two = new Clients(stock.namesrv())) {
            awaitBoth(one);
            awaitBoth(two);
            String topic = one.topic(QUEUES);
            one.awaitRoute(topic, 2 * QUEUES);
            two.awaitRoute(topic, 2 * QUEUES);
            assertEquals(route(two, topic), route(one, topic));
            assertEquals(two.admin().examineBrokerClusterInfo().getClusterAddrTable(), one.admin().examineBrokerClusterInfo().getClusterAddrTable());
            Until.holds(Clients.SOON, "both list the same topics", () ->
                new TreeSet<>(two.admin().fetchAllTopicList().getTopicList()).equals(new TreeSet<>(one.admin().fetchAllTopicList().getTopicList())));
            // Each broker's tables as mqadmin asks for them, through either.
            for (Node namesrv : List.of(ours, stock)) {
                String list = Capture.mqadmin("clusterList", "-n", namesrv.namesrv());
                assertTrue(list.contains(ourBroker.broker()) && list.contains(stockBroker.broker()), list);
            }
        }
    }

    @Test
    void aKilledBrokerLeavesBoth() throws Exception {
        // A third one, so that the others are left alone.
        try (Node third = Rig.broker(Rig.kind(), "mixed-third", "broker-third", ours.namesrv(), stock.namesrv())) {
            for (Node namesrv : List.of(ours, stock)) {
                awaitThird(namesrv, true);
            }
            third.kill();
            for (Node namesrv : List.of(ours, stock)) {
                awaitThird(namesrv, false);
            }
        }
    }

    private static void awaitThird(Node namesrv, boolean known) {
        try (Clients one = new Clients(namesrv.namesrv())) {
            Until.holds(Clients.LATER, namesrv.namesrv() + (known ? " knows" : " has forgotten") + " the third",
                () -> one.admin().examineBrokerClusterInfo().getBrokerAddrTable().containsKey("broker-third") == known);
        }
    }

    /** Clients that know only this NameServer use both brokers. */
    private static void worksThrough(Node namesrv) throws Exception {
        try (Clients clients = new Clients(namesrv.namesrv())) {
            awaitBoth(clients);
            String topic = clients.topic(QUEUES);
            DefaultMQProducer producer = clients.producer();
            List<String> bodies = Clients.bodies("mixed", 60);
            List<String> brokers = new ArrayList<>();
            clients.send(producer, topic, bodies).forEach(r -> brokers.add(r.getMessageQueue().getBrokerName()));
            assertEquals(30, brokers.stream().filter("broker-ours"::equals).count());
            assertEquals(30, brokers.stream().filter("broker-stock"::equals).count());
            clients.inbox(Clients.unique("group"), topic).awaitExactly(bodies);
        }
    }

    private static void awaitBoth(Clients clients) {
        Until.holds(Clients.LATER, clients.namesrv() + " knows both brokers", () ->
            Set.of("broker-ours", "broker-stock").equals(clients.admin().examineBrokerClusterInfo().getClusterAddrTable().get("mixed")));
    }

    private static Set<String> route(Clients clients, String topic) throws Exception {
        Set<String> lines = clients.admin().examineTopicRouteInfo(topic).getQueueDatas().stream()
            .map(QueueData::toString).collect(Collectors.toCollection(TreeSet::new));
        clients.admin().examineTopicRouteInfo(topic).getBrokerDatas().forEach(b -> lines.add(b.toString()));
        return lines;
    }
}
