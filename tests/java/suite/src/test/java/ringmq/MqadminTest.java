package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.atomic.AtomicReference;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.protocol.subscription.SubscriptionGroupConfig;
import org.junit.jupiter.api.Test;
import ringmq.rig.Rig;
import ringmq.rig.Until;

/** RocketMQ's own mqadmin: what it prints is what is there. */
class MqadminTest extends SharedServer {
    private static final String CLUSTER = "DefaultCluster";
    private static final String BROKER = "broker-a";

    @Test
    void clusterList() {
        assertTrue(columns(mqadmin("clusterList")).stream().anyMatch(c -> c.size() >= 6
            && c.subList(0, 4).equals(List.of(CLUSTER, BROKER, "0", node.broker()))));
        assertTrue(columns(mqadmin("clusterList", "-m")).stream().anyMatch(c -> c.size() == 6
            && c.subList(0, 2).equals(List.of(CLUSTER, BROKER))));
    }

    @Test
    void topicList() throws Exception {
        String topic = clients.topic(2);
        List<String> topics = mqadmin("topicList").lines().map(String::strip).toList();
        assertTrue(topics.containsAll(List.of(topic, "TBW102", "BenchmarkTest", CLUSTER, BROKER)), topics.toString());
        String group = Clients.unique("group");
        clients.inbox(group, topic);
        Until.holds(Clients.SOON, topic + " with its cluster and its group",
            () -> columns(mqadmin("topicList", "-c")).contains(List.of(CLUSTER, topic, group)));
    }

    @Test
    void updateTopic() {
        String topic = Clients.unique("topic");
        String made = mqadmin("updateTopic", "-c", CLUSTER, "-t", topic, "-r", "3", "-w", "3");
        assertTrue(made.contains("create topic to " + node.broker() + " success."), made);
        clients.awaitRoute(topic, 3);
        mqadmin("updateTopic", "-b", node.broker(), "-t", topic, "-r", "5", "-w", "5");
        clients.awaitRoute(topic, 5);
        String refused = mqadmin("updateTopic", "-b", node.broker(), "-t", "not/a/topic");
        assertFalse(refused.contains("success"), refused);
    }

    @Test
    void topicRoute() throws Exception {
        String topic = clients.topic(3);
        String route = mqadmin("topicRoute", "-t", topic);
        for (String part : List.of("\"brokerName\":\"" + BROKER + "\"", "\"" + node.broker() + "\"", "\"readQueueNums\":3", "\"perm\":6",
            "\"cluster\":\"" + CLUSTER + "\"")) {
            assertTrue(route.replaceAll("\\s", "").contains(part), part + " in " + route);
        }
        String list = mqadmin("topicRoute", "-l", "-t", topic);
        assertTrue(columns(list).contains(List.of(CLUSTER, BROKER, "{0=" + node.broker() + "}", "3", "3", "6")), list);
        assertTrue(mqadmin("topicRoute", "-t", Clients.unique("none")).contains("No topic route info"));
    }

    @Test
    void topicStatus() throws Exception {
        String topic = clients.topic(2);
        DefaultMQProducer producer = clients.producer();
        clients.send(producer, topic, Clients.bodies("s", 10));
        List<List<String>> rows = columns(mqadmin("topicStatus", "-t", topic));
        for (String queue : List.of("0", "1")) {
            assertTrue(rows.stream().anyMatch(c -> c.size() >= 5 && c.subList(0, 4).equals(List.of(BROKER, queue, "0", "5"))), rows.toString());
        }
    }

    @Test
    void deleteTopic() throws Exception {
        String topic = clients.topic(2);
        DefaultMQProducer producer = clients.producer();
        clients.send(producer, topic, Clients.bodies("old", 10));
        String deleted = mqadmin("deleteTopic", "-c", CLUSTER, "-t", topic);
        assertTrue(deleted.contains("delete topic [" + topic + "] from cluster [" + CLUSTER + "] success."), deleted);
        assertTrue(deleted.contains("delete topic [" + topic + "] from NameServer success."), deleted);
        // A registration that was under way may bring it back until the next one.
        Until.holds(Clients.SOON, "no route any more", () -> mqadmin("topicRoute", "-t", topic).contains("No topic route info")
            && !mqadmin("topicList").lines().map(String::strip).toList().contains(topic));

        mqadmin("updateTopic", "-c", CLUSTER, "-t", topic, "-r", "2", "-w", "2");
        clients.awaitRoute(topic, 2);
        assertEquals(List.of(), clients.read(topic), "what it held went with it");
        clients.send(clients.producer(), topic, List.of("new"));
        assertEquals(List.of("new"), Clients.texts(clients.read(topic)));
    }

    @Test
    void brokerStatus() throws Exception {
        String topic = clients.topic(1);
        long before = Long.parseLong(value(mqadmin("brokerStatus", "-b", node.broker()), "msgPutTotalTodayNow", ": "));
        clients.send(clients.producer(), topic, Clients.bodies("b", 10));
        String status = mqadmin("brokerStatus", "-b", node.broker());
        // Others send to the same server meanwhile.
        assertTrue(Long.parseLong(value(status, "msgPutTotalTodayNow", ": ")) >= before, status);
        for (String key : List.of("brokerVersionDesc", "bootTimestamp", "putTps", "getTransferredTps", "commitLogDiskRatio",
            "earliestMessageTimeStamp", "commitLogMaxOffset", "sendThreadPoolQueueSize", "runtime")) {
            assertFalse(value(status, key, ": ").isBlank(), key + " in " + status);
        }
        assertTrue(mqadmin("brokerStatus", "-c", CLUSTER).contains(node.broker()));
    }

    @Test
    void getBrokerConfig() {
        String config = mqadmin("getBrokerConfig", "-b", node.broker());
        assertEquals(BROKER, value(config, "brokerName", "=  "));
        assertEquals(CLUSTER, value(config, "brokerClusterName", "=  "));
        assertEquals("0", value(config, "brokerId", "=  "));
        assertEquals("127.0.0.1", value(config, "brokerIP1", "=  "));
        assertEquals(node.broker().replaceFirst("^.*:", ""), value(config, "listenPort", "=  "));
        assertEquals("4194304", value(config, "maxMessageSize", "=  "));
        assertEquals(Rig.kind() == Rig.Kind.RINGMQ ? "SYNC_FLUSH" : "ASYNC_FLUSH", value(config, "flushDiskType", "=  "));
    }

    @Test
    void sendMessage() throws Exception {
        String topic = clients.topic(3);
        String sent = mqadmin("sendMessage", "-t", topic, "-p", "body 你好", "-k", "key-1", "-c", "tag-1", "-b", BROKER, "-i", "1");
        assertTrue(columns(sent).stream().anyMatch(c -> c.size() == 4 && c.subList(0, 3).equals(List.of(BROKER, "1", "SEND_OK"))), sent);
        List<MessageQueue> queue = clients.queues(topic).stream().filter(q -> q.getQueueId() == 1).toList();
        assertEquals(List.of("body 你好"), Clients.texts(clients.read(queue.get(0))).stream().distinct().toList());
        assertEquals("key-1", clients.read(topic).get(0).getKeys());
        assertEquals("tag-1", clients.read(topic).get(0).getTags());
    }

    @Test
    void consumeMessage() throws Exception {
        String topic = clients.topic(1);
        clients.send(clients.producer(), topic, Clients.bodies("c", 20));
        String all = mqadmin("consumeMessage", "-t", topic, "-c", "20");
        assertEquals(Clients.bodies("c", 20), printed(all), all);
        String some = mqadmin("consumeMessage", "-t", topic, "-b", BROKER, "-i", "0", "-o", "15", "-c", "3");
        assertEquals(Clients.bodies("c", 18).subList(15, 18), printed(some), some);
    }

    @Test
    void printMsg() throws Exception {
        String topic = clients.topic(2);
        DefaultMQProducer producer = clients.producer();
        for (int i = 0; i < 10; i++) {
            producer.send(new Message(topic, i < 5 ? "low" : "high", Clients.bytes("印-" + i)));
        }
        String all = mqadmin("printMsg", "-t", topic, "-d", "true");
        assertEquals(Clients.bodies("印", 10), printed(all).stream().sorted().toList(), all);
        assertTrue(all.contains("minOffset=0, maxOffset=5, MessageQueue [topic=" + topic + ", brokerName=" + BROKER + ", queueId=0]"), all);
        String high = mqadmin("printMsg", "-t", topic, "-d", "true", "-s", "high");
        assertEquals(Clients.bodies("印", 10).subList(5, 10), printed(high).stream().sorted().toList(), high);
    }

    @Test
    void queryMsg() throws Exception {
        String topic = clients.topic(2);
        DefaultMQProducer producer = clients.producer();
        clients.send(producer, topic, Clients.bodies("before", 4));
        SendResult result = producer.send(new Message(topic, "tag-q", "key-q", Clients.bytes("探")));
        // A consumer makes the tool ask for the groups of the topic, too.
        Inbox inbox = clients.inbox(Clients.unique("group"), topic);
        inbox.awaitAll(Clients.SOON, List.of("探"));
        for (String command : List.of("queryMsgById", "queryMsgByUniqueKey")) {
            boolean byId = command.equals("queryMsgById");
            List<String> arguments = new ArrayList<>(List.of(command, "-t", topic, "-i", byId ? result.getOffsetMsgId() : result.getMsgId()));
            if (byId) {
                arguments.addAll(List.of("-f", "UTF-8"));
            }
            AtomicReference<String> output = new AtomicReference<>();
            Until.holds(Clients.SOON, () -> command + " finds it: " + output, () -> {
                output.set(mqadmin(arguments.toArray(String[]::new)));
                return output.get().contains("Topic:");
            });
            String found = output.get();
            assertEquals(topic, value(found, "Topic", ": "), found);
            assertEquals("[tag-q]", value(found, "Tags", ": "), found);
            assertEquals("[key-q]", value(found, "Keys", ": "), found);
            assertEquals("" + result.getQueueOffset(), value(found, "Queue Offset", ": "), found);
            assertEquals("" + result.getMessageQueue().getQueueId(), value(found, "Queue ID", ": "), found);
            assertEquals(node.broker(), value(found, "Store Host", ": "), found);
            if (byId) {
                assertEquals("探", value(found, "Message Body", ": "), found);
            }
        }
        String byKey = mqadmin("queryMsgByKey", "-t", topic, "-k", "key-q");
        assertTrue(byKey.contains(result.getMsgId()), byKey);
    }

    @Test
    void consumerProgress() throws Exception {
        String topic = clients.topic(2);
        String group = Clients.unique("group");
        DefaultMQProducer producer = clients.producer();
        List<String> bodies = Clients.bodies("p", 10);
        clients.send(producer, topic, bodies);
        Inbox inbox = clients.inbox(group, topic);
        inbox.awaitExactly(bodies);
        Until.holds(Clients.LATER, "both queues consumed to their ends", () -> {
            List<List<String>> rows = columns(mqadmin("consumerProgress", "-g", group));
            return List.of("0", "1").stream().allMatch(queue -> rows.stream().anyMatch(c -> c.size() > 6
                && c.subList(0, 6).equals(List.of(topic, BROKER, queue, "5", "5", "0"))));
        });
        assertTrue(mqadmin("consumerProgress", "-g", group).contains("Consume Diff Total: 0"));
        assertTrue(columns(mqadmin("consumerProgress")).stream().anyMatch(c -> !c.isEmpty() && group.startsWith(c.get(0))), "it is listed");
    }

    @Test
    void connections() throws Exception {
        String topic = clients.topic(1);
        String group = Clients.unique("group");
        DefaultMQProducer producer = clients.producer();
        clients.send(producer, topic, List.of("hello"));
        Inbox inbox = clients.inbox(group, topic);
        inbox.awaitExactly(List.of("hello"));
        String consumers = mqadmin("consumerConnection", "-g", group);
        assertTrue(consumers.contains("127.0.0.1:") && consumers.contains("JAVA") && consumers.contains(topic), consumers);
        assertTrue(consumers.contains("CONSUME_PASSIVELY") && consumers.contains("CLUSTERING"), consumers);
        Until.holds(Clients.SOON, "the producer is seen after its heartbeat", () -> {
            String producers = mqadmin("producerConnection", "-g", producer.getProducerGroup(), "-t", topic);
            return producers.contains("127.0.0.1:") && producers.contains("JAVA");
        });
    }

    @Test
    void updateSubGroup() throws Exception {
        String group = Clients.unique("group");
        String made = mqadmin("updateSubGroup", "-c", CLUSTER, "-g", group, "-r", "3", "-q", "2");
        assertTrue(made.contains("create subscription group to " + node.broker() + " success."), made);
        SubscriptionGroupConfig config = clients.admin().examineSubscriptionGroupConfig(node.broker(), group);
        assertEquals(3, config.getRetryMaxTimes());
        assertEquals(2, config.getRetryQueueNums());
        mqadmin("updateSubGroup", "-b", node.broker(), "-g", group, "-r", "4");
        assertEquals(4, clients.admin().examineSubscriptionGroupConfig(node.broker(), group).getRetryMaxTimes());

        String gone = mqadmin("deleteSubGroup", "-b", node.broker(), "-g", group);
        assertTrue(gone.contains("delete subscription group [" + group + "] from broker [" + node.broker() + "] success."), gone);
    }

    @Test
    void keysAndValues() throws Exception {
        String namespace = Clients.unique("namespace");
        mqadmin("updateKvConfig", "-s", namespace, "-k", "名", "-v", "值");
        assertEquals("值", clients.admin().getKVConfig(namespace, "名"));
        mqadmin("deleteKvConfig", "-s", namespace, "-k", "名");
        Until.holds(Clients.SOON, "it is gone", () -> {
            try {
                return clients.admin().getKVConfig(namespace, "名") == null;
            } catch (Exception notFound) {
                return true;
            }
        });
    }

    /** The command as a person runs it: a process of its own, through {@code tests/mqadmin}. */
    @Test
    void fromTheShell() throws Exception {
        String topic = clients.topic(1);
        Process process = new ProcessBuilder(Rig.tests().resolve("mqadmin").toString(), "topicList", "-n", node.namesrv())
            .redirectErrorStream(true).start();
        String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        assertEquals(0, process.waitFor(), output);
        assertTrue(output.lines().map(String::strip).toList().contains(topic), output);
    }

    private String mqadmin(String... arguments) {
        List<String> all = new ArrayList<>(Arrays.asList(arguments));
        all.addAll(List.of("-n", node.namesrv()));
        return Capture.mqadmin(all.toArray(String[]::new));
    }

    /** The words of each line. */
    private static List<List<String>> columns(String output) {
        return output.lines().map(line -> List.of(line.strip().split("\\s+"))).toList();
    }

    /** What stands behind a key, up to the end of its line. */
    private static String value(String output, String key, String separator) {
        Matcher line = Pattern.compile("(?m)^" + Pattern.quote(key) + "\\s*" + Pattern.quote(separator.strip()) + "(.*)$").matcher(output);
        assertTrue(line.find(), key + " in " + output);
        return line.group(1).strip();
    }

    /** The bodies that were printed. */
    private static List<String> printed(String output) {
        Matcher body = Pattern.compile("(?m)^MSGID: .*BODY: (.*)$").matcher(output);
        List<String> bodies = new ArrayList<>();
        while (body.find()) {
            bodies.add(body.group(1));
        }
        return bodies;
    }
}
