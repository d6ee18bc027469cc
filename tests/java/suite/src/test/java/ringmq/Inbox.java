package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashSet;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyContext;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.common.message.MessageExt;
import ringmq.rig.Until;

/** A listener that keeps what it is given. */
final class Inbox implements MessageListenerConcurrently {
    private final Queue<MessageExt> messages = new ConcurrentLinkedQueue<>();

    @Override
    public ConsumeConcurrentlyStatus consumeMessage(List<MessageExt> batch, ConsumeConcurrentlyContext context) {
        messages.addAll(batch);
        return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
    }

    List<MessageExt> messages() {
        return new ArrayList<>(messages);
    }

    List<String> texts() {
        return Clients.texts(messages());
    }

    /** Waits until all these bodies have come, perhaps beside others. */
    void awaitAll(Duration limit, Collection<String> bodies) {
        Until.holds(limit, () -> {
            HashSet<String> missing = new HashSet<>(bodies);
            missing.removeAll(texts());
            return "all of " + bodies.size() + " messages; " + missing.size() + " are missing, such as "
                + missing.stream().limit(3).toList();
        }, () -> new HashSet<>(texts()).containsAll(bodies));
    }

    /** Waits until all these bodies have come, and expects nothing else and nothing twice. */
    void awaitExactly(Collection<String> bodies) {
        awaitAll(Clients.LATER, bodies);
        assertEquals(bodies.stream().sorted().toList(), texts().stream().sorted().toList());
    }
}
