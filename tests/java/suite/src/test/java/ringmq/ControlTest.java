package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.protocol.body.CMResult;
import org.apache.rocketmq.remoting.protocol.body.ConsumeMessageDirectlyResult;
import org.apache.rocketmq.remoting.protocol.body.ConsumerRunningInfo;
import org.junit.jupiter.api.Test;
import ringmq.rig.Until;

/** Admin tools reach clients through the broker, set their offsets anew and show what went in and out. */
class ControlTest extends SharedServer {
    private static final String BROKER = "broker-a";

    @Test
    void clientsAreAsked() throws Exception {
        String topic = clients.topic(1);
        String group = Clients.unique("group");
        SendResult sent = clients.send(clients.producer(), topic, List.of("again")).get(0);
        Inbox inbox = clients.inbox(group, topic);
        inbox.awaitExactly(List.of("again"));
        String client = clients.admin().examineConsumerConnectionInfo(group).getConnectionSet().iterator().next().getClientId();
        ConsumerRunningInfo info = clients.admin().getConsumerRunningInfo(group, client, true);
        assertTrue(info.getMqTable().keySet().stream().anyMatch(queue -> queue.getTopic().equals(topic)), info.toString());
        assertTrue(info.getJstack().contains("TID:"), "its threads");
        assertTrue(mqadmin("consumerStatus", "-g", group, "-i", client).contains(topic));

        ConsumeMessageDirectlyResult result =
            clients.admin().consumeMessageDirectly(group, client, topic, sent.getOffsetMsgId());
        assertEquals(CMResult.CR_SUCCESS, result.getConsumeResult());
        assertEquals(List.of("again", "again"), inbox.texts());
        Map<String, Map<MessageQueue, Long>> status = clients.admin().getConsumeStatus(topic, group, "");
        assertEquals(java.util.Set.of(client), status.keySet());
        clients.awaitCommitted(group, topic);
        Until.holds(Clients.SOON, "the client says that it is at the end", () ->
            List.of(1L).equals(new ArrayList<>(clients.admin().getConsumeStatus(topic, group, client).get(client).values())));
    }

    @Test
    void offsetsAreSetAnew() throws Exception {
        String topic = clients.topic(2);
        String group = Clients.unique("group");
        List<String> bodies = Clients.bodies("r", 20);
        clients.send(clients.producer(), topic, bodies);
        Inbox inbox = clients.inbox(group, topic);
        inbox.awaitExactly(bodies);
        clients.awaitCommitted(group, topic);
        String reset = mqadmin("resetOffsetByTime", "-g", group, "-t", topic, "-s", "0", "-f", "true");
        assertTrue(reset.contains(BROKER), reset);
        Until.holds(Clients.LATER, "everything comes again", () -> inbox.texts().size() >= 2 * bodies.size());
        clients.awaitCommitted(group, topic);
        mqadmin("skipAccumulatedMessage", "-g", group, "-t", topic);
        String other = clients.group();
        String cloned = mqadmin("cloneGroupOffset", "-s", group, "-d", other, "-t", topic);
        assertTrue(cloned.contains("success"), cloned);
        assertTrue(clients.admin().examineConsumeStats(other, topic).getOffsetTable().values().stream()
            .allMatch(offsets -> offsets.getConsumerOffset() == 10));
        String all = mqadmin("brokerConsumeStats", "-b", node.broker());
        assertTrue(all.contains(topic) && all.contains(group) && all.contains("Diff Total"), all);
    }

    @Test
    void whatWentInAndOut() throws Exception {
        String topic = clients.topic(1);
        String group = Clients.unique("group");
        DefaultMQProducer producer = clients.producer();
        Inbox inbox = clients.inbox(group, topic);
        List<String> bodies = Clients.bodies("s", 50);
        clients.send(producer, topic, bodies);
        inbox.awaitExactly(bodies);
        Until.holds(Clients.LATER, "fifty in and fifty out", () ->
            Arrays.stream(mqadmin("statsAll", "-t", topic).split("\n")).map(line -> List.of(line.trim().split("\\s+")))
                .anyMatch(c -> c.size() >= 7 && c.get(0).equals(topic) && c.get(5).equals("50") && c.get(6).equals("50")));
    }

    private String mqadmin(String... arguments) {
        List<String> all = new ArrayList<>(Arrays.asList(arguments));
        all.addAll(List.of("-n", node.namesrv()));
        return Capture.mqadmin(all.toArray(String[]::new));
    }
}
