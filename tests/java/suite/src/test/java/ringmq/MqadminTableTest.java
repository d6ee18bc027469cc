package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.alibaba.fastjson2.JSON;
import com.alibaba.fastjson2.JSONObject;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.protocol.admin.OffsetWrapper;
import org.apache.rocketmq.remoting.protocol.body.ConsumerRunningInfo;
import org.apache.rocketmq.tools.monitor.DefaultMonitorListener;
import org.apache.rocketmq.tools.monitor.MonitorConfig;
import org.apache.rocketmq.tools.monitor.MonitorService;
import org.apache.rocketmq.tools.monitor.UndoneMsgs;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.api.function.Executable;
import org.junit.jupiter.api.io.TempDir;
import ringmq.rig.Node;
import ringmq.rig.Rig;
import ringmq.rig.Until;

/**
 * Every sub-command of mqadmin, as docs/COMPATIBILITY.md lists them: one that works prints what is there, one that does not
 * says so at once. {@link MqadminTest} looks closer at those that are used most.
 */
class MqadminTableTest {
    private static final String CLUSTER = "DefaultCluster";
    private static final String BROKER = "broker-a";
    private static final int QUEUES = 2;
    private static final int MESSAGES = 10;
    /** A stack trace, or the help that a command shows when it is called wrong. */
    private static final Pattern BROKEN = Pattern.compile("(?m)^\\s+at [\\w.$]+\\(|^[\\w.]+Exception\\b|usage: mqadmin");

    @TempDir
    private static Path dir;
    // One of its own: some commands concern a broker as a whole.
    private static Node node;
    private static Clients clients;
    private static String topic;
    private static String group;
    private static String producers;
    private static SendResult sent;
    private static final Map<String, Executable> WORKS = new TreeMap<>();
    private static final Map<String, Executable> REFUSED = new TreeMap<>();

    /** A topic with messages that a consumer, who is there, has consumed. */
    @BeforeAll
    static void open() throws Exception {
        node = Rig.dev();
        clients = new Clients(node.namesrv());
        topic = clients.topic(QUEUES);
        group = clients.group();
        DefaultMQProducer producer = clients.producer(settings -> settings.setEnableTrace(true));
        producers = producer.getProducerGroup();
        for (int i = 0; i < MESSAGES; i++) {
            sent = producer.send(new Message(topic, "tag-" + i % 3, "key-" + i, Clients.bytes("body-" + i)));
        }
        clients.inbox(group, topic).awaitAll(Clients.SOON, Clients.bodies("body", MESSAGES));
        clients.awaitCommitted(group, topic);
        topics();
        groups();
        messages();
        servers();
        refused();
    }

    @AfterAll
    static void close() {
        clients.close();
        node.close();
    }

    @TestFactory
    Stream<DynamicTest> everySubCommand() throws IOException {
        Map<String, Boolean> table = Files.readAllLines(Rig.tests().resolveSibling("docs/COMPATIBILITY.md")).stream()
            .dropWhile(line -> !line.startsWith("| sub-command |")).skip(2).takeWhile(line -> line.startsWith("|"))
            .map(line -> line.split("\\|")).collect(Collectors.toMap(cells -> cells[1].strip(), cells -> cells[3].strip().equals("yes")));
        assertEquals(table.entrySet().stream().filter(Map.Entry::getValue).map(Map.Entry::getKey).sorted().toList(),
            List.copyOf(WORKS.keySet()), "what works");
        assertEquals(table.entrySet().stream().filter(row -> !row.getValue()).map(Map.Entry::getKey).sorted().toList(),
            List.copyOf(REFUSED.keySet()), "what does not");
        return Stream.concat(WORKS.entrySet().stream(), REFUSED.entrySet().stream())
            .map(row -> DynamicTest.dynamicTest(row.getKey(), row.getValue()));
    }

    private static void topics() {
        works("updateTopic", () -> {
            String made = Clients.unique("topic");
            // With -o it shows a stack trace of its own: there was no such setting before.
            has(mqadmin("updateTopic", "-b", node.broker(), "-t", made, "-r", "3", "-w", "3", "-o", "true"), "create topic to " + node.broker() + " success.",
                "set broker orderConf. isOrder=true, orderConf=[" + BROKER + ":3]");
            clients.awaitRoute(made, 3);
        });
        works("updateTopicList", () -> {
            List<String> made = List.of(Clients.unique("topic"), Clients.unique("topic"));
            String json = made.stream().map(name -> "{\"topicName\":\"" + name + "\",\"readQueueNums\":3,\"writeQueueNums\":3,\"perm\":6}")
                .collect(Collectors.joining(",", "[", "]"));
            has(run("updateTopicList", "-b", node.broker(), "-f", file(json)), "submit batch of topic config to " + node.broker() + " success");
            made.forEach(name -> clients.awaitRoute(name, 3));
        });
        works("deleteTopic", () -> {
            String made = clients.topic(1);
            has(run("deleteTopic", "-c", CLUSTER, "-t", made), "delete topic [" + made + "] from cluster [" + CLUSTER + "] success.");
            // A registration that was under way may bring it back until the next one.
            Until.holds(Clients.SOON, "it is gone", () -> !clients.admin().fetchAllTopicList().getTopicList().contains(made));
        });
        works("updateTopicPerm", () -> {
            String made = clients.topic(1);
            has(run("updateTopicPerm", "-b", node.broker(), "-t", made, "-p", "4"), "update topic perm from 6 to 4 in " + node.broker() + " success.");
            Until.holds(Clients.SOON, "everybody knows", () -> permOf(made) == 4);
            has(run("updateTopicPerm", "-b", node.broker(), "-t", made, "-p", "4"), "new perm equals to the old one!");
        });
        works("topicList", () -> row(run("topicList", "-c"), CLUSTER, topic, group));
        works("topicRoute", () -> has(run("topicRoute", "-t", topic).replaceAll("\\s", ""), "\"brokerName\":\"" + BROKER + "\"", "\"readQueueNums\":2"));
        works("topicStatus", () -> row(run("topicStatus", "-t", topic), BROKER, "1", "0", "5"));
        works("topicClusterList", () -> assertEquals(CLUSTER, run("topicClusterList", "-t", topic).strip()));
        works("allocateMQ", () -> {
            JSONObject shares = JSON.parseObject(run("allocateMQ", "-t", topic, "-i", "one,two")).getJSONObject("result");
            for (String client : List.of("one", "two")) {
                assertEquals(1, shares.getJSONArray(client).size(), shares.toString());
                assertEquals(topic, shares.getJSONArray(client).getJSONObject(0).getString("topic"), shares.toString());
            }
        });
        works("statsAll", () -> {
            row(run("statsAll", "-t", topic), topic, group, "0");
            row(run("statsAll", "-t", "TBW102"), "TBW102", "0", "0.00", "0", "NO_CONSUMER");
        });
        works("updateOrderConf", () -> {
            String made = clients.topic(1);
            has(mqadmin("updateOrderConf", "-t", made, "-m", "put", "-v", BROKER + ":1"), "update orderConf success.");
            has(run("updateOrderConf", "-t", made, "-m", "get"), "get orderConf success. topic=[" + made + "], orderConf=[" + BROKER + ":1]");
            has(run("updateOrderConf", "-t", made, "-m", "delete"), "delete orderConf success. topic=[" + made + "]");
            has(mqadmin("updateOrderConf", "-t", made, "-m", "get"), "CODE: 22");
        });
        works("cleanUnusedTopic", () -> {
            assertEquals("success", run("cleanUnusedTopic", "-b", node.broker()));
            assertEquals("success", run("cleanUnusedTopic", "-c", CLUSTER));
            assertEquals(MESSAGES, clients.read(topic).size(), "what is used stays");
        });
    }

    private static void groups() {
        works("updateSubGroup", () -> {
            String made = Clients.unique("group");
            has(run("updateSubGroup", "-c", CLUSTER, "-g", made, "-r", "3"), "create subscription group to " + node.broker() + " success.");
            assertEquals(3, clients.admin().examineSubscriptionGroupConfig(node.broker(), made).getRetryMaxTimes());
        });
        works("updateSubGroupList", () -> {
            List<String> made = List.of(Clients.unique("group"), Clients.unique("group"));
            String json = made.stream().map(name -> "{\"groupName\":\"" + name + "\",\"retryMaxTimes\":7}").collect(Collectors.joining(",", "[", "]"));
            has(run("updateSubGroupList", "-b", node.broker(), "-f", file(json)), "submit batch of group config to " + node.broker() + " success");
            for (String name : made) {
                assertEquals(7, clients.admin().examineSubscriptionGroupConfig(node.broker(), name).getRetryMaxTimes());
            }
        });
        works("deleteSubGroup", () -> {
            String made = clients.group();
            has(run("deleteSubGroup", "-b", node.broker(), "-g", made, "-r", "true"),
                "delete subscription group [" + made + "] from broker [" + node.broker() + "] success.");
            assertFalse(clients.admin().getAllSubscriptionGroup(node.broker(), 5_000).getSubscriptionGroupTable().containsKey(made));
        });
        works("getConsumerConfig", () -> {
            String config = run("getConsumerConfig", "-g", group);
            has(config, "=" + CLUSTER + ":" + BROKER + "=");
            assertEquals(group, value(config, "groupName"));
            assertEquals("16", value(config, "retryMaxTimes"));
        });
        works("setConsumeMode", () -> {
            String made = clients.group();
            has(run("setConsumeMode", "-b", node.broker(), "-t", topic, "-g", made, "-m", "POP", "-q", "2"), "set consume mode to " + node.broker() + " success.",
                "topic[" + topic + "] group[" + made + "] consume mode[POP] popShareQueueNum[2]");
        });
        works("consumerConnection", () -> has(run("consumerConnection", "-g", group), "127.0.0.1:", "JAVA", topic, "CONSUME_PASSIVELY", "CLUSTERING",
            "CONSUME_FROM_FIRST_OFFSET"));
        works("consumerProgress", () -> {
            String progress = run("consumerProgress", "-g", group, "-s", "true");
            row(progress, topic, BROKER, "1", "5", "5");
            has(progress, "Consume Diff Total: 0");
            row(run("consumerProgress"), group, "1");
        });
        works("consumerStatus", () -> {
            String status = run("consumerStatus", "-g", group);
            has(status, "Same subscription in the same group of consumer", "Rebalance OK");
            // It writes a file for each client into a directory below the current one.
            Matcher written = Pattern.compile("(?m)^1 .* (\\d+/\\S+)$").matcher(status);
            assertTrue(written.find(), status);
            Path file = Path.of(written.group(1));
            has(Files.readString(file), "#Consumer MQ Detail#", topic);
            Files.delete(file);
            Files.delete(file.getParent());
            has(mqadmin("consumerStatus", "-g", group, "-s", "-i", file.getFileName().toString()), "#Consumer jstack#", "ConsumeMessageThread_");
        });
        works("brokerConsumeStats", () -> {
            String stats = run("brokerConsumeStats", "-b", node.broker());
            row(stats, topic, group, BROKER, "0", "5", "5", "0");
            has(stats, "Diff Total: ");
        });
        works("cloneGroupOffset", () -> {
            String clone = clients.group();
            has(run("cloneGroupOffset", "-s", group, "-d", clone, "-t", topic), "clone group offset success. srcGroup[" + group + "], destGroup=[" + clone + "]");
            assertEquals(List.of(5L, 5L), offsets(clone));
        });
        works("resetOffsetByTime", () -> {
            // Nobody of that group is there: the broker alone is asked.
            String made = offline();
            String reset = run("resetOffsetByTime", "-g", made, "-t", topic, "-s", "0");
            row(reset, BROKER, "0", "0");
            row(reset, BROKER, "1", "0");
            assertEquals(List.of(0L, 0L), offsets(made));
            has(run("resetOffsetByTime", "-g", made, "-t", topic, "-s", "now", "-b", node.broker(), "-q", "1", "-o", "3"), "reset consumer offset to 3");
            assertEquals(List.of(0L, 3L), offsets(made));
        });
        works("skipAccumulatedMessage", () -> {
            String made = offline();
            run("resetOffsetByTime", "-g", made, "-t", topic, "-s", "0");
            String skipped = run("skipAccumulatedMessage", "-g", made, "-t", topic);
            row(skipped, BROKER, "0", "5");
            assertEquals(List.of(5L, 5L), offsets(made));
        });
        works("startMonitoring", () -> {
            // The command begins its first round after twenty seconds and never ends: this is one round.
            MonitorConfig config = new MonitorConfig();
            config.setNamesrvAddr(node.namesrv());
            List<String> undone = new ArrayList<>();
            List<String> running = new ArrayList<>();
            MonitorService service = new MonitorService(config, new DefaultMonitorListener() {
                @Override
                public void reportUndoneMsgs(UndoneMsgs messages) {
                    undone.add(messages.getConsumerGroup() + " " + messages.getTopic() + " " + messages.getUndoneMsgsTotal());
                }

                @Override
                public void reportConsumerRunningInfo(TreeMap<String, ConsumerRunningInfo> clients) {
                    clients.values().forEach(info -> running.add(info.getProperties().getProperty("consumerGroup")));
                }
            }, null);
            service.start();
            service.doMonitorWork();
            service.shutdown();
            assertTrue(undone.contains(group + " " + topic + " 0"), undone.toString());
            assertTrue(running.contains(group), running.toString());
        });
        works("producer", () -> Until.holds(Clients.SOON, "the producer is seen after its heartbeat",
            () -> run("producer", "-b", node.broker()).contains("producer group (" + producers + ") instance : clientId=")));
        works("producerConnection", () -> Until.holds(Clients.SOON, "the producer is seen after its heartbeat", () -> {
            String output = run("producerConnection", "-g", producers, "-t", topic);
            return output.contains("127.0.0.1:") && output.contains("JAVA");
        }));
    }

    private static void messages() {
        works("sendMessage", () -> row(run("sendMessage", "-t", clients.topic(1), "-p", "hello", "-b", BROKER, "-i", "0"), BROKER, "0", "SEND_OK"));
        works("consumeMessage", () -> assertEquals(Clients.bodies("body", MESSAGES), printed(run("consumeMessage", "-t", topic, "-c", "100"))));
        works("printMsg", () -> assertEquals(Clients.bodies("body", MESSAGES), printed(run("printMsg", "-t", topic, "-d", "true"))));
        works("printMsgByQueue", () -> {
            String all = run("printMsgByQueue", "-t", topic, "-a", BROKER, "-i", "1", "-p", "true", "-d", "true", "-f", "true");
            List<String> bodies = clients.read(new MessageQueue(topic, BROKER, 1)).stream().map(Clients::text).sorted().toList();
            assertEquals(bodies, printed(all));
            // The tags of every other message, begun with the first or the second.
            assertEquals(MESSAGES / QUEUES, Pattern.compile("(?m)^Tag: tag-\\d +Count: (\\d)$").matcher(all).results()
                .mapToInt(count -> Integer.parseInt(count.group(1))).sum(), all);
        });
        works("queryMsgById", () -> has(run("queryMsgById", "-t", topic, "-i", sent.getOffsetMsgId(), "-f", "UTF-8"), topic, "[key-9]", "body-9"));
        works("queryMsgByKey", () -> {
            has(run("queryMsgByKey", "-t", topic, "-k", "key-9"), sent.getMsgId());
            has(run("queryMsgByKey", "-t", topic, "-p", "T", "-k", "tag-0"), sent.getMsgId());
        });
        works("queryMsgByOffset", () -> has(run("queryMsgByOffset", "-t", topic, "-b", BROKER, "-i", "" + sent.getMessageQueue().getQueueId(),
            "-o", "" + sent.getQueueOffset(), "-f", "UTF-8"), topic, "[key-9]", "body-9", sent.getMsgId()));
        works("queryMsgByUniqueKey", () -> has(run("queryMsgByUniqueKey", "-t", topic, "-i", sent.getMsgId()), topic, "[key-9]", node.broker(),
            "consumerGroup=" + group + ", trackType=CONSUMED"));
        works("queryMsgTraceById", () -> Until.holds(Clients.LATER, "the trace is stored", () -> {
            List<List<String>> rows;
            try {
                rows = columns(run("queryMsgTraceById", "-i", sent.getMsgId()));
            } catch (AssertionError noTraceYet) {
                return false;
            }
            return rows.stream().anyMatch(c -> c.size() == 7 && c.subList(0, 2).equals(List.of("Pub", producers)) && c.get(6).equals("success"));
        }));
        works("queryCq", () -> {
            String queue = run("queryCq", "-t", topic, "-q", "0", "-i", "3", "-c", "9", "-b", node.broker(), "-g", group);
            has(queue, "Subscription data:", "\"subString\":\"*\"", "max: 5, min: 0", "idx: 3", "idx: 4", "tagsCode=" + tagHash(0, 3));
            assertFalse(queue.contains("idx: 5") || queue.contains("idx: 2"), queue);
        });
        works("sendMsgStatus", () -> assertEquals(3, Pattern.compile("rt=\\d+ms, SendResult=SendResult \\[sendStatus=SEND_OK")
            .matcher(run("sendMsgStatus", "-b", BROKER, "-s", "100", "-c", "3")).results().count()));
        works("checkMsgSendRT", () -> {
            String times = run("checkMsgSendRT", "-t", clients.topic(2), "-a", "4", "-s", "100");
            row(times, BROKER, "0", "true");
            row(times, BROKER, "1", "true");
            has(times, "Avg RT: ");
        });
        works("clusterRT", () -> {
            Pattern line = Pattern.compile("(?m)^" + CLUSTER + " +" + BROKER + " +[\\d.]+ +5 +0 *$");
            String times = Capture.mqadminUntil(line, "clusterRT", "-a", "5", "-s", "100", "-n", node.namesrv());
            assertTrue(line.matcher(times).find(), times);
        });
    }

    private static void servers() {
        works("clusterList", () -> row(run("clusterList"), CLUSTER, BROKER, "0", node.broker()));
        works("brokerStatus", () -> {
            String status = run("brokerStatus", "-b", node.broker());
            assertTrue(Long.parseLong(value(status, "commitLogMaxOffset")) > 0, status);
            assertFalse(value(status, "brokerVersionDesc").isBlank(), status);
        });
        works("getBrokerConfig", () -> assertEquals(BROKER, value(run("getBrokerConfig", "-b", node.broker()), "brokerName")));
        works("updateBrokerConfig", () -> {
            String before = value(run("getBrokerConfig", "-b", node.broker()), "transactionCheckMax");
            for (String wanted : List.of("7", before)) {
                has(run("updateBrokerConfig", "-b", node.broker(), "-k", "transactionCheckMax", "-v", wanted), "update broker config success, " + node.broker());
                assertEquals(wanted, value(run("getBrokerConfig", "-c", CLUSTER), "transactionCheckMax"));
            }
        });
        works("updateColdDataFlowCtrGroupConfig", () -> {
            has(run("updateColdDataFlowCtrGroupConfig", "-b", node.broker(), "-g", group, "-v", "123456"), "updateColdDataFlowCtrGroupConfig success, " + node.broker());
            assertTrue(run("getColdDataFlowCtrInfo", "-b", node.broker()).matches("(?s).*\"" + group + "\":\\s*123456\\b.*"));
        });
        works("getColdDataFlowCtrInfo", () ->
            has(run("getColdDataFlowCtrInfo", "-c", CLUSTER), "Master: " + node.broker(), "runtimeTable", "configTable", "cgColdReadThreshold", "globalColdReadThreshold", "globalAcc"));
        works("removeColdDataFlowCtrGroupConfig", () -> {
            String unused = Clients.unique("group");
            run("updateColdDataFlowCtrGroupConfig", "-c", CLUSTER, "-g", unused, "-v", "1");
            has(run("getColdDataFlowCtrInfo", "-b", node.broker()), unused);
            has(run("removeColdDataFlowCtrGroupConfig", "-b", node.broker(), "-g", unused), "remove broker cold read threshold success, " + node.broker());
            assertFalse(run("getColdDataFlowCtrInfo", "-b", node.broker()).contains(unused));
        });
        works("getNamesrvConfig", () -> {
            String config = run("getNamesrvConfig");
            has(config, "============" + node.namesrv() + "============");
            assertEquals(node.namesrv().replaceFirst("^.*:", ""), value(config, "listenPort"));
        });
        works("updateNamesrvConfig", () -> {
            for (String wanted : List.of("true", "false")) {
                has(run("updateNamesrvConfig", "-k", "orderMessageEnable", "-v", wanted), "update name server config success![" + node.namesrv() + "]");
                assertEquals(wanted, value(run("getNamesrvConfig"), "orderMessageEnable"));
            }
        });
        works("updateKvConfig", () -> {
            has(run("updateKvConfig", "-s", "made-here", "-k", "key", "-v", "value"), "create or update kv config to namespace success.");
            assertEquals("value", clients.admin().getKVConfig("made-here", "key"));
        });
        works("deleteKvConfig", () -> {
            clients.admin().createAndUpdateKvConfig("to-delete", "key", "value");
            has(run("deleteKvConfig", "-s", "to-delete", "-k", "key"), "delete kv config from namespace success.");
            Until.holds(Clients.SOON, "it is gone", () -> mqadmin("updateOrderConf", "-t", "key", "-m", "get").contains("CODE: 22"));
        });
        works("wipeWritePerm", () -> {
            assertTrue(run("wipeWritePerm", "-b", BROKER).matches("(?s)wipe write perm of broker\\[" + BROKER + "] in name server\\["
                + node.namesrv() + "] OK, [1-9]\\d*\\R"));
            assertEquals(4, permOf(topic));
            clients.admin().addWritePermOfBroker(node.namesrv(), BROKER);
        });
        works("addWritePerm", () -> {
            clients.admin().wipeWritePermOfBroker(node.namesrv(), BROKER);
            assertTrue(run("addWritePerm", "-b", BROKER).matches("(?s)add write perm of broker\\[" + BROKER + "] in name server\\["
                + node.namesrv() + "] OK, [1-9]\\d*\\R"));
            assertEquals(6, permOf(topic));
        });
        for (String command : List.of("cleanExpiredCQ", "deleteExpiredCommitLog")) {
            works(command, () -> {
                assertEquals("success", run(command, "-b", node.broker()));
                assertEquals("success", run(command, "-c", CLUSTER));
                assertEquals(MESSAGES, clients.read(topic).size(), "what did not expire stays");
            });
        }
        works("exportConfigs", () -> {
            JSONObject configs = exported("exportConfigs", "configs.json").getJSONObject("brokerConfigs");
            assertEquals(CLUSTER, configs.getJSONObject(BROKER).getString("brokerClusterName"), configs.toString());
        });
        works("exportMetadata", () -> {
            JSONObject metadata = exported("exportMetadata", "metadata.json");
            assertEquals(QUEUES, metadata.getJSONObject("topicConfigTable").getJSONObject(topic).getIntValue("readQueueNums"));
            assertTrue(metadata.getJSONObject("subscriptionGroupTable").containsKey(group));
            assertFalse(metadata.getJSONObject("topicConfigTable").containsKey("%RETRY%" + group), "without -s");
        });
        works("exportMetrics", () -> {
            JSONObject report = exported("exportMetrics", "metrics.json").getJSONObject("evaluateReport").getJSONObject(BROKER);
            JSONObject quota = report.getJSONObject("runtimeQuota");
            assertTrue(quota.getIntValue("topicSize") > 0 && quota.getIntValue("groupSize") > 0, report.toString());
            assertTrue(report.getJSONObject("runtimeVersion").getJSONArray("clientInfo").stream()
                .anyMatch(client -> client.toString().startsWith("JAVA%V5_5_0")), report.toString());
        });
    }

    private static void refused() {
        String broker = node.broker();
        String namesrv = node.namesrv();
        refused("addBroker", 902, "-c", broker, "-b", "/etc/broker.conf");
        refused("removeBroker", 903, "-c", broker, "-b", CLUSTER + ":" + BROKER + ":0");
        refused("resetMasterFlushOffset", 908, "-b", broker, "-o", "0");
        refused("haStatus", 907, "-b", broker);
        refused("getBrokerEpoch", 1007, "-b", BROKER);
        refused("getControllerMetaData", 1005, "-a", namesrv);
        refused("getControllerConfig", 1010, "-a", namesrv);
        refused("updateControllerConfig", 1009, "-a", namesrv, "-k", "key", "-v", "value");
        refused("getSyncStateSet", 1005, "-a", namesrv, "-b", BROKER);
        refused("electMaster", 1005, "-a", namesrv, "-b", "1", "-bn", BROKER, "-c", CLUSTER);
        refused("cleanBrokerMetadata", 1005, "-a", namesrv, "-b", "1", "-bn", BROKER, "-c", CLUSTER);
        refused("updateStaticTopic", 513, "-b", BROKER, "-t", Clients.unique("static"), "-qn", "4");
        refused("remappingStaticTopic", "No topic route to do the remapping", "-b", BROKER, "-t", Clients.unique("static"));
        refused("setCommitLogReadAheadMode", 2004, "-b", broker, "-m", "1");
        refused("switchTimerEngine", 5001, "-b", broker, "-e", "F");
        refused("rocksDBConfigToJson", 355, "-c", CLUSTER);
        refused("checkRocksdbCqWriteProgress", 354, "-c", CLUSTER, "-t", topic);
        refused("exportPopRecord", 200056, "-b", broker);
        refused("dumpCompactionLog", "not exist.", "-f", dir.resolve("none").toString());
        refused("exportMetadataInRocksDB", "RocksDB path is invalid.", "-p", dir.resolve("none").toString(), "-t", "topics");
        refused("createUser", 3001, "-b", broker, "-u", "user", "-p", "password");
        refused("updateUser", 3002, "-b", broker, "-u", "user", "-p", "password");
        refused("deleteUser", 3003, "-b", broker, "-u", "user");
        refused("getUser", 3004, "-b", broker, "-u", "user");
        refused("listUser", 3005, "-b", broker);
        refused("copyUser", 3005, "-f", broker, "-t", broker);
        refused("createAcl", 3006, "-b", broker, "-s", "User:user", "-r", "Topic:*", "-a", "Pub", "-d", "Allow");
        refused("updateAcl", 3007, "-b", broker, "-s", "User:user", "-r", "Topic:*", "-a", "Pub", "-d", "Allow");
        refused("deleteAcl", 3008, "-b", broker, "-s", "User:user");
        refused("getAcl", 3009, "-b", broker, "-s", "User:user");
        refused("listAcl", 3010, "-b", broker);
        refused("copyAcl", 3010, "-f", broker, "-t", broker);
        refused("getBrokerLiteInfo", 200074, "-b", broker);
        // These keep what the broker answers to themselves.
        refused("getParentTopicInfo", "[" + BROKER + "] error.", "-p", topic);
        refused("getLiteTopicInfo", "[" + BROKER + "] error.", "-p", topic, "-l", "lite");
        refused("getLiteClientInfo", "[" + BROKER + "] error.", "-p", topic, "-g", group, "-c", "client");
        refused("getLiteGroupInfo", "[" + BROKER + "] error.", "-p", topic, "-g", group);
        refused("triggerLiteDispatch", "error", "-p", topic, "-g", group);
    }

    private static void works(String command, Executable check) {
        assertEquals(null, WORKS.put(command, check), command + " is there once");
    }

    /** The server does not know this request code, and the command says so. */
    private static void refused(String command, int code, String... arguments) {
        refused(command, "request type " + code + " not supported", arguments);
    }

    private static void refused(String command, String why, String... arguments) {
        assertEquals(null, REFUSED.put(command, () -> {
            Assumptions.assumeTrue(Rig.kind() == Rig.Kind.RINGMQ, "a stock broker may know it");
            List<String> all = new ArrayList<>(List.of(command));
            all.addAll(List.of(arguments));
            String output = mqadmin(all.toArray(String[]::new));
            has(output, why);
            // Nothing stands still, and no connection breaks.
            assertFalse(output.matches("(?s).*(Remoting\\w*Exception|usage: mqadmin).*"), output);
        }), command + " is there once");
    }

    private static String mqadmin(String... arguments) {
        List<String> all = new ArrayList<>(Arrays.asList(arguments));
        all.addAll(List.of("-n", node.namesrv()));
        return Capture.mqadmin(all.toArray(String[]::new));
    }

    /** What a command prints that works. */
    private static String run(String... arguments) {
        String output = mqadmin(arguments);
        assertFalse(BROKEN.matcher(output).find(), output);
        return output;
    }

    private static void has(String output, String... parts) {
        for (String part : parts) {
            assertTrue(output.contains(part), part + " in " + output);
        }
    }

    /** One of the lines begins with these words. Long names are cut at their front by some commands. */
    private static void row(String output, String... cells) {
        assertTrue(columns(output).stream().anyMatch(c -> c.size() >= cells.length && c.subList(0, cells.length).equals(List.of(cells))),
            List.of(cells) + " in " + output);
    }

    private static List<List<String>> columns(String output) {
        return output.lines().map(line -> List.of(line.strip().split("\\s+"))).toList();
    }

    /** What stands behind a key and `=` or `:`, up to the end of its line. */
    private static String value(String output, String key) {
        Matcher line = Pattern.compile("(?m)^" + Pattern.quote(key) + " *[=:](.*)$").matcher(output);
        assertTrue(line.find(), key + " in " + output);
        return line.group(1).strip();
    }

    /** The bodies that were printed, sorted. */
    private static List<String> printed(String output) {
        return Pattern.compile("(?m)^MSGID: .*BODY: (.*)$").matcher(output).results().map(body -> body.group(1)).sorted().toList();
    }

    private static JSONObject exported(String command, String name) throws IOException {
        Path path = dir.resolve(command);
        has(run(command, "-c", CLUSTER, "-f", path.toString()), "export " + path.resolve(name) + " success");
        return JSON.parseObject(Files.readString(path.resolve(name)));
    }

    private static String file(String text) throws IOException {
        return Files.writeString(Files.createTempFile(dir, "given", ".json"), text).toString();
    }

    private static int permOf(String topic) throws Exception {
        return clients.admin().examineTopicRouteInfo(topic).getQueueDatas().get(0).getPerm();
    }

    /** A group that is where the consumer is, and of which nobody is there. */
    private static String offline() throws Exception {
        String made = clients.group();
        for (MessageQueue queue : clients.queues(topic)) {
            clients.admin().updateConsumeOffset(node.broker(), made, queue, 5);
        }
        return made;
    }

    /** What a group has committed of the topic, by queue. */
    private static List<Long> offsets(String group) throws Exception {
        Map<MessageQueue, OffsetWrapper> table = clients.admin().examineConsumeStats(group, topic).getOffsetTable();
        return table.keySet().stream().filter(queue -> queue.getTopic().equals(topic)).sorted()
            .map(queue -> table.get(queue).getConsumerOffset()).toList();
    }

    private static long tagHash(int queue, int offset) throws Exception {
        return clients.read(new MessageQueue(topic, BROKER, queue)).get(offset).getTags().hashCode();
    }
}
