package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageQueue;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import ringmq.rig.Node;
import ringmq.rig.Rig;
import ringmq.rig.Server;
import ringmq.rig.Until;

/** The benchmark programs of rocketmq-example, for some seconds: they speak RocketMQ's binary header instead of JSON. */
class BenchmarkTest extends SharedServer {
    private static final Pattern PRODUCED = Pattern.compile("Send TPS: [1-9]\\d* .*Send Failed: \\d+ \\| Response Failed: \\d+");
    private static final Pattern BATCHED = Pattern.compile("Send TPS: [1-9]\\d* \\| Send MPS: [1-9]\\d* .*Send Failed: \\d+ \\| Send Message Failed: \\d+");
    private static final Pattern ENDED =
        Pattern.compile("Send TPS: +[1-9]\\d* .*Send Failed: \\d+ \\| Check: \\d+ \\| UnexpectedCheck: \\d+ \\| DuplicatedCheck: \\d+");
    private static final Pattern PUT_OFF = Pattern.compile("Send TPS: [1-9]\\d*, .*Send Failed: \\d+, Response Failed: \\d+");
    // Never before its time.
    private static final Pattern DUE = Pattern.compile("Consume TPS: [1-9]\\d*, Avg delayedDuration: +\\d+\\.\\d+, Max delayedDuration: \\d+");
    private static final Pattern CONSUMED = Pattern.compile("Consume TPS: [1-9]\\d* .*Consume Fail: \\d+");
    private static final Pattern FAILED = Pattern.compile("(Fail(ed)?|UnexpectedCheck|DuplicatedCheck): [1-9]");

    @TempDir
    private Path dir;

    /** Loads something, and returns what the programs printed. */
    private interface Round {
        List<Path> run(Path dir) throws Exception;
    }

    /**
     * No send may fail, nor one be asked about that was decided. Where the machine stands still for the three seconds that a
     * client waits, one does: then once more.
     */
    private void withoutFailure(Round round) throws Exception {
        List<Path> outputs = round.run(Files.createTempDirectory(dir, "round"));
        if (outputs.stream().anyMatch(output -> FAILED.matcher(read(output)).find())) {
            outputs = round.run(Files.createTempDirectory(dir, "again"));
        }
        outputs.forEach(output -> assertFalse(FAILED.matcher(read(output)).find(), read(output)));
    }

    @Test
    void producerAndConsumer() throws Exception {
        withoutFailure(this::producerAndConsumer);
    }

    private List<Path> producerAndConsumer(Path dir) throws Exception {
        String topic = clients.topic(8);
        Path consumed = dir.resolve("consumer");
        Path produced = dir.resolve("producer");
        // Each prints its first figures after ten seconds.
        try (Server consumer = start(consumed, "Consumer Started", "Consumer", "-t", topic, "-g", Clients.unique("group"), "-ri", "1000");
            Server producer = start(produced, "topic: ", "Producer", "-t", topic, "-w", "4", "-s", "1024", "-ri", "1000")) {
            Until.holds(Clients.LATER, () -> "figures of both: " + read(produced) + read(consumed),
                () -> PRODUCED.matcher(read(produced)).find() && CONSUMED.matcher(read(consumed)).find());
        }
        return List.of(produced, consumed);
    }

    @Test
    void exactlySoMany() throws Exception {
        withoutFailure(this::exactlySoMany);
    }

    private List<Path> exactlySoMany(Path dir) throws Exception {
        String topic = clients.topic(4);
        Path produced = dir.resolve("producer");
        try (Server producer = start(produced, "Complete", "Producer", "-t", topic, "-w", "4", "-s", "500", "-q", "5000",
            "-k", "true", "-l", "3")) {
            assertTrue(read(produced).contains("Send Total: 5000"), read(produced));
        }
        // A send that failed is repeated: then there may be more.
        if (!FAILED.matcher(read(produced)).find()) {
            clients.awaitCount(topic, 5000);
        }
        for (MessageQueue queue : clients.queues(topic)) {
            clients.read(queue).forEach(m -> assertEquals(500, m.getBody().length));
        }
        return List.of(produced);
    }

    @Test
    void batchesTransactionsAndTimers() throws Exception {
        withoutFailure(this::batchesTransactionsAndTimers);
    }

    /** Side by side, on a server of their own, because the timers would come while other tests run. */
    private List<Path> batchesTransactionsAndTimers(Path dir) throws Exception {
        try (Node own = Rig.dev(); Clients its = new Clients(own.namesrv())) {
            String topic = its.topic(4);
            String timers = its.topic(4);
            Path batched = dir.resolve("batch");
            Path ended = dir.resolve("transaction");
            Path putOff = dir.resolve("timer-producer");
            Path due = dir.resolve("timer-consumer");
            DefaultMQProducer producer = its.producer();
            try (Server one = start(own, batched, "topic: ", "BatchProducer", "-t", topic, "-w", "2", "-s", "256", "-b", "16", "-ri", "1000");
                Server two = start(own, ended, "", "TransactionProducer", "-t", topic, "-w", "2", "-s", "256", "-sr", "0.1", "-su", "0.1", "-ri", "1000");
                Server three = start(own, putOff, "Start sending", "timer.TimerProducer", "-t", topic, "-tc", "2", "-st", "100", "-mt", "2000");
                Server four = start(own, due, "Start receiving", "timer.TimerConsumer", "-t", timers)) {
                // The timers of the one are due two minutes later: the other one gets some that are due sooner.
                Until.holds(Clients.LATER, () -> "figures of all: " + Stream.of(batched, ended, putOff, due).map(BenchmarkTest::read).toList(), () -> {
                    String dueMs = Long.toString(System.currentTimeMillis() + 200);
                    Message message = new Message(timers, Clients.bytes("due"));
                    message.putUserProperty("MY_RECORD_TIMER_DELIVER_MS", dueMs);
                    message.setDeliverTimeMs(Long.parseLong(dueMs));
                    producer.send(message);
                    return BATCHED.matcher(read(batched)).find() && ENDED.matcher(read(ended)).find()
                        && PUT_OFF.matcher(read(putOff)).find() && DUE.matcher(read(due)).find();
                });
            }
            return List.of(batched, ended, putOff);
        }
    }

    private Server start(Path output, String ready, String program, String... arguments) {
        return start(node, output, ready, program, arguments);
    }

    private Server start(Node node, Path output, String ready, String program, String... arguments) {
        List<String> command = new ArrayList<>(List.of("java", "-Xmx256m", "-XX:+UseSerialGC", "-Duser.home=" + dir,
            "-cp", System.getProperty("java.class.path"), "org.apache.rocketmq.example.benchmark." + program, "-n", node.namesrv()));
        command.addAll(List.of(arguments));
        return Server.start(command, output, line -> line.contains(ready));
    }

    private static String read(Path file) {
        try {
            return Files.readString(file);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }
}
